// Precision: autocast, TF32, the gradients of a scaled loss, and the same bits each time. Apart from shim.cpp because
// autocast's header includes all of ATen.

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>

#include <vector>

#include "guarded.h"

namespace {

at::DeviceType device_type(int cuda) { return cuda ? at::kCUDA : at::kCPU; }

}  // namespace

extern "C" {

// As `torch.autocast(...).__enter__`: all of it is state of this thread, and for these two device types nothing throws.
void relabel_torch_autocast_enter(int cuda, int half, int* was_enabled, int* was_dtype) noexcept {
  const at::DeviceType device = device_type(cuda);
  *was_enabled = at::autocast::is_autocast_enabled(device) ? 1 : 0;
  *was_dtype = static_cast<int>(at::autocast::get_autocast_dtype(device));
  at::autocast::set_autocast_enabled(device, true);
  at::autocast::set_autocast_dtype(device, half ? at::kHalf : at::kBFloat16);
  at::autocast::increment_nesting();
}

// As `__exit__`: the casts of the weights are good for one region, as the optimizer changes the weights.
void relabel_torch_autocast_leave(int cuda, int was_enabled, int was_dtype) noexcept {
  const at::DeviceType device = device_type(cuda);
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device, was_enabled != 0);
  at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(was_dtype));
}

// As `torch.use_deterministic_algorithms`: an operator that has no such algorithm throws. What is uninitialized stays so.
char* relabel_torch_deterministic(int on) {
  return guarded([&] {
    at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setDeterministicCuDNN(on != 0);
  });
}

char* relabel_torch_allow_tf32(int allow) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuDNN(allow != 0);
    at::globalContext().setAllowTF32CuBLAS(allow != 0);
  });
}

// Multiplies `gradients` by `inverse_scale` in one pass, and says whether all of them were finite.
char* relabel_torch_unscale(at::Tensor* gradients, float inverse_scale, int* finite) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    const auto options = gradients->options().dtype(at::kFloat);
    at::Tensor found_inf = at::zeros({1}, options);
    std::vector<at::Tensor> list{*gradients};
    at::_amp_foreach_non_finite_check_and_unscale_(list, found_inf, at::full({1}, inverse_scale, options));
    *finite = found_inf.item<float>() == 0.0f ? 1 : 0;
  });
}

}  // extern "C"
