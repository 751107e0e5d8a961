// Tells Rust when the gradient of a parameter has been accumulated. Apart from shim.cpp because autograd's headers are
// long.

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <utility>

#include "guarded.h"

namespace {

// Neither throws nor unwinds.
using Accumulated = void (*)(const void* context, size_t index);
using Release = void (*)(const void* context);

// A share of what stands behind `context`, given back at the end.
class Share {
 public:
  Share(const void* context, Release release) : context_(context), release_(release) {}
  Share(Share&& other) noexcept : context_(std::exchange(other.context_, nullptr)), release_(other.release_) {}
  Share(const Share&) = delete;
  Share& operator=(Share&&) = delete;
  ~Share() {
    if (context_) release_(context_);
  }
  const void* get() const { return context_; }

 private:
  const void* context_;
  Release release_;
};

class Hook final : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(Share share, size_t index, Accumulated accumulated)
      : share_(std::move(share)), index_(index), accumulated_(accumulated) {}
  void operator()(const at::Tensor&) override { accumulated_(share_.get(), index_); }

 private:
  Share share_;
  size_t index_;
  Accumulated accumulated_;
};

}  // namespace

extern "C" {

// Has every backward pass call `accumulated(context, index)` when it has added to `parameter`'s gradient all that it adds,
// on whichever thread that is. `release(context)` is called once in any case: when the parameter is gone or has got
// another hook, or at once where it gets none.
char* relabel_torch_hook_gradient(const at::Tensor* parameter, const void* context, size_t index,
                                  Accumulated accumulated, Release release) {
  Share share(context, release);
  return guarded([&] {
    if (!parameter->requires_grad() || !parameter->is_leaf()) {
      throw std::invalid_argument("no gradient is accumulated in what is no parameter");
    }
    torch::autograd::impl::set_post_acc_grad_hooks(*parameter,
                                                   std::make_unique<Hook>(std::move(share), index, accumulated));
  });
}

}  // extern "C"
