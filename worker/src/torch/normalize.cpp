// BatchNorm of images in channels_last memory on the CPU, while training, and what follows it in a residual network: the
// addition of a shortcut, and a ReLU. libtorch's own operators go over the images seven times in the forward pass and
// eight in the backward; these three and five times.
//
// The sums over the images are made of sums over blocks of rows that do not depend on the number of threads, so neither
// does any result.

#include <ATen/Functions.h>
#include <ATen/TensorIterator.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "guarded.h"

namespace {

// Rows, which are pixels of an image with all their channels, whose sums are kept in f32.
constexpr int64_t kSpan = 64;
// Blocks that threads take, at most.
constexpr int64_t kBlocks = 64;

using Half = uint16_t;  // a bfloat16

inline float widened(float value) { return value; }

inline float widened(Half value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline void put(float* to, float value) { *to = value; }

// Rounded to the nearest, to even where two are.
inline void put(Half* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  *to = static_cast<Half>(value != value ? 0x7fc0 : rounded);
}

// Images as rows of channels.
struct Rows {
  int64_t count, channels;

  int64_t per_block() const {
    const int64_t least = (count + kBlocks - 1) / kBlocks;
    return (least + kSpan - 1) / kSpan * kSpan;
  }
  int64_t blocks() const { return (count + per_block() - 1) / per_block(); }
};

Rows rows_of(const at::Tensor& images) { return {images.numel() / images.size(1), images.size(1)}; }

// Calls `body(block, first row, row after the last)` on libtorch's threads. They are reached by an operator on a tensor
// with an element a block: libtorch's header alone would need OpenMP at build time.
template <class Body>
void on_blocks(const Rows& rows, Body&& body) {
  const int64_t blocks = rows.blocks(), per_block = rows.per_block();
  std::vector<uint8_t> elements(blocks);
  at::Tensor tensor = at::from_blob(elements.data(), {blocks}, at::TensorOptions().dtype(at::kByte));
  auto iterator = at::TensorIteratorConfig().check_all_same_dtype(false).resize_outputs(false).add_output(tensor).build();
  const auto visit = [&](char** data, const int64_t* strides, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t block = reinterpret_cast<uint8_t*>(data[0] + i * strides[0]) - elements.data();
      body(block, block * per_block, std::min(rows.count, (block + 1) * per_block));
    }
  };
  iterator.for_each(visit, /*grain_size=*/1);
}

// Two sums a channel of what `row(r, a, b)` adds to a and b for each row.
struct Sums {
  std::vector<double> a, b;
};

template <class Row>
Sums sums(const Rows& rows, Row&& row) {
  const int64_t channels = rows.channels;
  std::vector<Sums> of_block(rows.blocks());
  on_blocks(rows, [&](int64_t block, int64_t first, int64_t end) {
    Sums total{std::vector<double>(channels), std::vector<double>(channels)};
    std::vector<float> a(channels), b(channels);
    for (int64_t from = first; from < end; from += kSpan) {
      std::fill(a.begin(), a.end(), 0.0f);
      std::fill(b.begin(), b.end(), 0.0f);
      for (int64_t r = from; r < std::min(end, from + kSpan); ++r) row(r, a.data(), b.data());
      for (int64_t c = 0; c < channels; ++c) {
        total.a[c] += a[c];
        total.b[c] += b[c];
      }
    }
    of_block[block] = std::move(total);
  });
  Sums total{std::vector<double>(channels), std::vector<double>(channels)};
  for (const Sums& block : of_block) {
    for (int64_t c = 0; c < channels; ++c) {
      total.a[c] += block.a[c];
      total.b[c] += block.b[c];
    }
  }
  return total;
}

template <class T>
const T* values(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* written(at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// The mean and the biased variance of each channel of x.
template <class T>
Sums moments(const T* x, const Rows& rows) {
  const int64_t channels = rows.channels;
  // The squares are those of the differences from the first row: a large mean does not eat up a small variance.
  std::vector<float> origin(channels);
  for (int64_t c = 0; c < channels; ++c) origin[c] = widened(x[c]);
  const float* __restrict from = origin.data();
  Sums found = sums(rows, [=](int64_t r, float* __restrict a, float* __restrict b) {
    const T* __restrict in = x + r * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float value = widened(in[c]) - from[c];
      a[c] += value;
      b[c] += value * value;
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = found.a[c] / rows.count;
    found.b[c] = std::max(found.b[c] / rows.count - mean * mean, 0.0);
    found.a[c] = mean + origin[c];
  }
  return found;
}

// y = relu(x * scale + offset + shortcut), where there is a shortcut and where there is a ReLU.
template <class T, bool kShortcut, bool kRelu>
void apply(const T* x, const T* shortcut, const float* scale, const float* offset, T* y, const Rows& rows) {
  const int64_t channels = rows.channels;
  on_blocks(rows, [=](int64_t, int64_t first, int64_t end) {
    for (int64_t r = first; r < end; ++r) {
      const T* __restrict in = x + r * channels;
      const T* __restrict beside = kShortcut ? shortcut + r * channels : nullptr;
      T* __restrict out = y + r * channels;
      for (int64_t c = 0; c < channels; ++c) {
        float value = widened(in[c]) * scale[c] + offset[c];
        if (kShortcut) value += widened(beside[c]);
        // A NaN stays one.
        if (kRelu) value = value < 0.0f ? 0.0f : value;
        put(out + c, value);
      }
    }
  });
}

// The sums of dz and of dz * (x - mean), where dz is the gradient behind the ReLU, written where `dz` is not null.
template <class T, bool kRelu, bool kKept>
Sums behind(const T* x, const T* y, const T* dy, const float* mean, T* dz, const Rows& rows) {
  const int64_t channels = rows.channels;
  return sums(rows, [=](int64_t r, float* __restrict a, float* __restrict b) {
    const T* __restrict in = x + r * channels;
    const T* __restrict out = kRelu ? y + r * channels : nullptr;
    const T* __restrict above = dy + r * channels;
    T* __restrict kept = kKept ? dz + r * channels : nullptr;
    for (int64_t c = 0; c < channels; ++c) {
      float gradient = widened(above[c]);
      if (kRelu) gradient = widened(out[c]) <= 0.0f ? 0.0f : gradient;
      if (kKept) put(kept + c, gradient);
      a[c] += gradient;
      b[c] += gradient * (widened(in[c]) - mean[c]);
    }
  });
}

// dx = dz * scale + (x - mean) * slope + offset, with dz as in `behind`.
template <class T, bool kRelu>
void spread(const T* x, const T* y, const T* dy, const float* mean, const float* scale, const float* slope,
            const float* offset, T* dx, const Rows& rows) {
  const int64_t channels = rows.channels;
  on_blocks(rows, [=](int64_t, int64_t first, int64_t end) {
    for (int64_t r = first; r < end; ++r) {
      const T* __restrict in = x + r * channels;
      const T* __restrict out = kRelu ? y + r * channels : nullptr;
      const T* __restrict above = dy + r * channels;
      T* __restrict below = dx + r * channels;
      for (int64_t c = 0; c < channels; ++c) {
        float gradient = widened(above[c]);
        if (kRelu) gradient = widened(out[c]) <= 0.0f ? 0.0f : gradient;
        put(below + c, gradient * scale[c] + (widened(in[c]) - mean[c]) * slope[c] + offset[c]);
      }
    }
  });
}

template <class T>
void forward(const at::Tensor& x, const std::optional<at::Tensor>& shortcut, const std::vector<float>& scale,
             const std::vector<float>& offset, bool relu, at::Tensor& y) {
  const T* beside = shortcut ? values<T>(*shortcut) : nullptr;
  const auto chosen = shortcut ? (relu ? apply<T, true, true> : apply<T, true, false>)
                               : (relu ? apply<T, false, true> : apply<T, false, false>);
  chosen(values<T>(x), beside, scale.data(), offset.data(), written<T>(y), rows_of(x));
}

// Fills dx, and dz where it is defined, and the gradients of weight and bias.
template <class T>
void backward(const at::Tensor& x, const at::Tensor& y, const at::Tensor& dy, const at::Tensor& weight,
              const at::Tensor& mean, const at::Tensor& scatter, bool relu, at::Tensor& dx, at::Tensor& dz,
              at::Tensor& d_weight, at::Tensor& d_bias) {
  const Rows rows = rows_of(x);
  const T *in = values<T>(x), *out = relu ? values<T>(y) : nullptr, *above = values<T>(dy);
  const float *center = values<float>(mean), *inverse = values<float>(scatter), *gain = values<float>(weight);
  T* kept = dz.defined() ? written<T>(dz) : nullptr;
  const auto first = kept ? (relu ? behind<T, true, true> : behind<T, false, true>)
                          : (relu ? behind<T, true, false> : behind<T, false, false>);
  const Sums found = first(in, out, above, center, kept, rows);
  std::vector<float> scale(rows.channels), slope(rows.channels), offset(rows.channels);
  float *by_weight = written<float>(d_weight), *by_bias = written<float>(d_bias);
  for (int64_t c = 0; c < rows.channels; ++c) {
    const double a = static_cast<double>(gain[c]) * inverse[c];
    scale[c] = static_cast<float>(a);
    slope[c] = static_cast<float>(-a * inverse[c] * inverse[c] * found.b[c] / rows.count);
    offset[c] = static_cast<float>(-a * found.a[c] / rows.count);
    by_weight[c] = static_cast<float>(found.b[c] * inverse[c]);
    by_bias[c] = static_cast<float>(found.a[c]);
  }
  // What has been kept is behind the ReLU already.
  const auto second = relu && !kept ? spread<T, true> : spread<T, false>;
  second(in, out, kept ? kept : above, center, scale.data(), slope.data(), offset.data(), written<T>(dx), rows);
}

at::Tensor like(const at::Tensor& images) { return at::empty_like(images, {}, at::MemoryFormat::ChannelsLast); }

struct Normalize : torch::autograd::Function<Normalize> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const std::optional<at::Tensor>& shortcut, const at::Tensor& weight, const at::Tensor& bias,
                            at::Tensor running_mean, at::Tensor running_var, double momentum, double eps, bool relu) {
    const Rows rows = rows_of(x);
    const bool half = x.scalar_type() == at::kBFloat16;
    const Sums found = half ? moments(values<Half>(x), rows) : moments(values<float>(x), rows);
    at::Tensor mean = at::empty_like(weight), scatter = at::empty_like(weight), y = like(x);
    std::vector<float> scale(rows.channels), offset(rows.channels);
    float *kept_mean = written<float>(running_mean), *kept_var = written<float>(running_var);
    // The running variance is that of a sample.
    const double sample = static_cast<double>(rows.count) / static_cast<double>(rows.count - 1);
    for (int64_t c = 0; c < rows.channels; ++c) {
      const double inverse = 1.0 / std::sqrt(found.b[c] + eps), a = inverse * values<float>(weight)[c];
      written<float>(mean)[c] = static_cast<float>(found.a[c]);
      written<float>(scatter)[c] = static_cast<float>(inverse);
      scale[c] = static_cast<float>(a);
      offset[c] = static_cast<float>(values<float>(bias)[c] - found.a[c] * a);
      kept_mean[c] = static_cast<float>(momentum * found.a[c] + (1.0 - momentum) * kept_mean[c]);
      kept_var[c] = static_cast<float>(momentum * found.b[c] * sample + (1.0 - momentum) * kept_var[c]);
    }
    half ? ::forward<Half>(x, shortcut, scale, offset, relu, y) : ::forward<float>(x, shortcut, scale, offset, relu, y);
    context->save_for_backward({x, relu ? y : at::Tensor(), weight, mean, scatter});
    context->saved_data["relu"] = relu;
    context->saved_data["shortcut"] = shortcut.has_value();
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &y = saved[1], &weight = saved[2], &mean = saved[3], &scatter = saved[4];
    const bool relu = context->saved_data["relu"].toBool(), shortcut = context->saved_data["shortcut"].toBool();
    const at::Tensor dy = gradients[0].to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
    // Without a ReLU the gradient of the shortcut is the one that came.
    at::Tensor dx = like(x), dz = relu && shortcut ? like(x) : at::Tensor();
    at::Tensor d_weight = at::empty_like(weight), d_bias = at::empty_like(weight);
    const auto fill = x.scalar_type() == at::kBFloat16 ? ::backward<Half> : ::backward<float>;
    fill(x, y, dy, weight, mean, scatter, relu, dx, dz, d_weight, d_bias);
    const at::Tensor beside = !shortcut ? at::Tensor() : relu ? dz : dy;
    return {dx, beside, d_weight, d_bias, {}, {}, {}, {}, {}};
  }
};

// Whether `images` are such as this file computes with.
bool fits(const at::Tensor& images) {
  return images.is_cpu() && images.dim() == 4 && images.is_contiguous(at::MemoryFormat::ChannelsLast) &&
         (images.scalar_type() == at::kFloat || images.scalar_type() == at::kBFloat16);
}

bool is_channels(const at::Tensor& tensor, int64_t channels) {
  return tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous() && tensor.dim() == 1 &&
         tensor.size(0) == channels;
}

}  // namespace

extern "C" {

// `out` stays null where the tensors are none that this can do. `shortcut` may be null.
char* relabel_torch_normalize(const at::Tensor* x, const at::Tensor* shortcut, const at::Tensor* weight,
                              const at::Tensor* bias, const at::Tensor* running_mean, const at::Tensor* running_var,
                              double momentum, double eps, int relu, at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
    // One row has no variance.
    if (!fits(*x) || x->numel() <= x->size(1)) return;
    for (const at::Tensor* tensor : {weight, bias, running_mean, running_var}) {
      if (!is_channels(*tensor, x->size(1))) return;
    }
    if (shortcut && !(fits(*shortcut) && shortcut->sizes() == x->sizes() &&
                      shortcut->scalar_type() == x->scalar_type())) {
      return;
    }
    std::optional<at::Tensor> beside;
    if (shortcut) beside = *shortcut;
    *out = new at::Tensor(
        Normalize::apply(*x, beside, *weight, *bias, *running_mean, *running_var, momentum, eps, relu != 0));
  });
}

}  // extern "C"
