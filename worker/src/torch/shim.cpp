// What tch does not expose of libtorch. How a function ends is in guarded.h.
//
// Only the narrow ATen headers are included: torch/torch.h takes half a minute to compile.

#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/GradMode.h>
#include <c10/core/MemoryFormat.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

#include "guarded.h"

namespace {

std::vector<at::Tensor> list(at::Tensor* const* tensors, size_t count) {
  std::vector<at::Tensor> out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i) out.push_back(*tensors[i]);
  return out;
}

// Whether equal indices are equal offsets. The stride of a side of length 1 is never used, and libtorch
// itself is free with it: a 1x1 kernel is contiguous in both memory formats.
bool same_strides(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

void require_same_layout(const at::Tensor& a, const at::Tensor& b, const char* what) {
  if (a.sizes() != b.sizes() || !same_strides(a, b) || a.scalar_type() != b.scalar_type() ||
      a.device() != b.device()) {
    std::ostringstream text;
    text << what << " of shape " << b.sizes() << ", strides " << b.strides() << ", " << b.scalar_type() << " on "
         << b.device() << " does not fit a parameter of shape " << a.sizes() << ", strides " << a.strides() << ", "
         << a.scalar_type() << " on " << a.device();
    throw std::invalid_argument(text.str());
  }
}

// The last line of what the interpreter says: before it stands a trace of the module's source.
std::string last_line(std::string text) {
  while (!text.empty() && isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

// Calls `visit` with the tensors of `module` in the order and by the names of its state_dict: its own parameters,
// its own buffers, then its children's. A tensor that stands in it twice is shown once, by its first name.
template <class Visit>
void each_tensor(const torch::jit::Module& module, const std::string& prefix, std::unordered_set<void*>& seen,
                 Visit&& visit) {
  auto show = [&](const std::string& name, const at::Tensor& tensor, bool is_parameter) {
    if (tensor.defined() && seen.insert(tensor.unsafeGetTensorImpl()).second) visit(prefix + name, tensor, is_parameter);
  };
  for (const auto& p : module.named_parameters(/*recurse=*/false)) show(p.name, p.value, true);
  for (const auto& b : module.named_buffers(/*recurse=*/false)) show(b.name, b.value, false);
  for (const auto& child : module.named_children()) each_tensor(child.value, prefix + child.name + ".", seen, visit);
}

}  // namespace

extern "C" {

void relabel_torch_free(char* text) { free(text); }

// Has malloc keep what is freed. The images of a layer are large enough to be mapped afresh in every step otherwise, a
// page fault and a page of zeros for each 4 KiB.
void relabel_torch_keep_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

char* relabel_torch_to_channels_last(const at::Tensor* in, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(in->contiguous(at::MemoryFormat::ChannelsLast)); });
}

char* relabel_torch_is_channels_last(const at::Tensor* tensor, int* out) {
  return guarded([&] { *out = tensor->is_contiguous(at::MemoryFormat::ChannelsLast) ? 1 : 0; });
}

char* relabel_torch_set_grad(at::Tensor* parameter, const at::Tensor* grad) {
  return guarded([&] {
    require_same_layout(*parameter, *grad, "a gradient");
    if (grad->requires_grad()) throw std::invalid_argument("a gradient buffer may not require gradients itself");
    parameter->mutable_grad() = *grad;
  });
}

char* relabel_torch_set_data(at::Tensor* parameter, const at::Tensor* data) {
  return guarded([&] {
    if (parameter->sizes() != data->sizes() || parameter->scalar_type() != data->scalar_type() ||
        parameter->device() != data->device()) {
      throw std::invalid_argument("the new memory is of another shape, kind or device");
    }
    c10::AutoGradMode no_grad(false);
    parameter->mutable_grad().reset();
    parameter->set_data(*data);
  });
}

// The `count` floats at `data`. `drop(owner)` is called when no tensor has them any more.
char* relabel_torch_over_memory(float* data, int64_t count, void* owner, void (*drop)(void*), at::Tensor** out) {
  return guarded([&] {
    *out = new at::Tensor(at::from_blob(data, {count}, [=](void*) { drop(owner); }, at::kFloat));
  });
}

// One pass over parameter, gradient and momentum: p, m <- torch.optim.SGD(p, g, m) with dampening 0.
char* relabel_torch_sgd_step(at::Tensor* const* parameters, at::Tensor* const* momentum_buffers, size_t count,
                             double lr, double momentum, double weight_decay, int nesterov) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    std::vector<at::Tensor> p = list(parameters, count), g, m = list(momentum_buffers, count);
    g.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      at::Tensor grad = p[i].grad();
      if (!grad.defined()) throw std::invalid_argument("parameter " + std::to_string(i) + " has no gradient");
      // The fused kernel walks raw memory, so equal shapes are not enough.
      require_same_layout(p[i], grad, "a gradient");
      require_same_layout(p[i], m[i], "a momentum buffer");
      g.push_back(std::move(grad));
    }
    if (momentum == 0.0) m.clear();
    at::_fused_sgd_(p, g, m, weight_decay, momentum, lr, /*dampening=*/0.0, nesterov != 0,
                    /*maximize=*/false, /*is_first_step=*/false);
  });
}

char* relabel_torch_script_load(const char* path, const at::Tensor* like, torch::jit::Module** out) {
  return guarded([&] { *out = new torch::jit::Module(torch::jit::load(path, like->device())); });
}

void relabel_torch_script_free(torch::jit::Module* module) { delete module; }

// `visit` owns each tensor, but not its name.
char* relabel_torch_script_tensors(const torch::jit::Module* module, void* context,
                                   void (*visit)(void* context, const char* name, at::Tensor* tensor, int is_parameter)) {
  return guarded([&] {
    std::unordered_set<void*> seen;
    each_tensor(*module, "", seen, [&](const std::string& name, const at::Tensor& tensor, bool is_parameter) {
      visit(context, name.c_str(), new at::Tensor(tensor), is_parameter ? 1 : 0);
    });
  });
}

char* relabel_torch_script_forward(torch::jit::Module* module, const at::Tensor* input, int train, at::Tensor** out) {
  return guarded([&] {
    if (module->is_training() != (train != 0)) module->train(train != 0);
    c10::IValue output;
    try {
      output = module->forward({*input});
    } catch (const c10::Error& e) {
      throw std::runtime_error(last_line(e.what_without_backtrace()));
    } catch (const std::exception& e) {
      throw std::runtime_error(last_line(e.what()));
    }
    if (!output.isTensor()) throw std::invalid_argument("it returns " + output.tagKind() + ", not one tensor");
    *out = new at::Tensor(output.toTensor());
  });
}

// The texts are the caller's to free. `bf16` is 1 where oneDNN computes in it on this processor, natively or not.
char* relabel_torch_about(char** build, char** kernels, char** onednn, int* bf16) {
  return guarded([&] {
    auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_is_mkldnn_bf16_supported", ""});
    *bf16 = op && op->typed<bool()>().call() ? 1 : 0;
    *build = message(at::show_config().c_str());
    *kernels = message(at::get_cpu_capability().c_str());
    *onednn = message(at::get_mkldnn_version().c_str());
  });
}

}  // extern "C"
