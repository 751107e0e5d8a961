// How the shim's functions end: null when they succeeded, otherwise a message from malloc, which the caller gives to
// relabel_torch_free. No exception crosses into Rust.
#pragma once

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>

inline char* message(const char* text) {
  char* copy = strdup(text);
  return copy ? copy : strdup("out of memory");
}

template <class Body>
char* guarded(Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& e) {
    // Without libtorch's own stack trace, which fills a screen.
    return message(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return message(e.what());
  } catch (...) {
    return message("an exception that is not a std::exception");
  }
}
