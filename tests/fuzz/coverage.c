/* Tells libFuzzer where libjpeg-turbo has been. Its C code is compiled with -fsanitize-coverage=trace-pc, which gcc
 * has as well as clang. libFuzzer no longer counts that way and ends the program where it is called so; the linker is
 * told to --wrap the call, which then comes here, to counters in a section that libFuzzer looks at. */
#include <stdint.h>

#define COUNTERS (1 << 16)

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t counters[COUNTERS];

__attribute__((no_sanitize_coverage)) void __wrap___sanitizer_cov_trace_pc(void) {
    /* From here and not from 0: where a program is loaded changes from one start to the next. */
    uintptr_t at = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&__wrap___sanitizer_cov_trace_pc;
    uint8_t *counter = &counters[(at ^ (at >> 16)) % COUNTERS];
    *counter += *counter != UINT8_MAX;
}
