// Convolutions to maps of a few pixels, in channels_last memory on the CPU, as matrix products over the batch. oneDNN's
// go along the rows of a map, of which there is next to nothing here, and multiply by the padding.

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "guarded.h"

namespace {

// Pixels of a map beyond which the products are too many, each of the same few rows: there oneDNN is as fast. Those of
// a kernel's gradient in bf16 are of more rows.
constexpr int64_t kMost = 4, kMostInHalf = 16;

// `count` pixels side by side of the images, from `image` on, that meet as many of the kernel, from `kernel` on, in the
// output's pixel `out`. In memory each such row is one after the other with all its channels.
struct Run {
  int64_t image, kernel, out, count;
};

struct Shape {
  int64_t batch, inputs, height, width, outputs, kernel_height, kernel_width, stride, padding;

  int64_t out(int64_t side, int64_t kernel) const { return (side + 2 * padding - kernel) / stride + 1; }
  int64_t out_height() const { return out(height, kernel_height); }
  int64_t out_width() const { return out(width, kernel_width); }
  int64_t out_pixels() const { return out_height() * out_width(); }

  at::Tensor empty_output(const at::Tensor& x) const {
    return at::empty({batch, outputs, out_height(), out_width()},
                     x.options().memory_format(at::MemoryFormat::ChannelsLast));
  }

  std::vector<Run> runs() const {
    std::vector<Run> runs;
    for (int64_t y = 0; y < out_height(); ++y) {
      for (int64_t x = 0; x < out_width(); ++x) {
        // The kernel's columns that lie within the image.
        const int64_t left = x * stride - padding;
        const int64_t first = std::max<int64_t>(0, -left), end = std::min(kernel_width, width - left);
        for (int64_t k = 0; k < kernel_height; ++k) {
          const int64_t row = y * stride - padding + k;
          if (row < 0 || row >= height || end <= first) continue;
          runs.push_back({row * width + left + first, k * kernel_width + first, y * out_width() + x, end - first});
        }
      }
    }
    return runs;
  }
};

Shape shape_of(const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t padding) {
  return {x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), weight.size(2), weight.size(3), stride, padding};
}

// [N, C, H, W] in channels_last memory, as it lies there: [N, H * W * C].
at::Tensor flat(const at::Tensor& images) {
  const int64_t each = images.numel() / images.size(0);
  return images.as_strided({images.size(0), each}, {each, 1});
}

struct Convolve : torch::autograd::Function<Convolve> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            int64_t stride, int64_t padding) {
    const Shape shape = shape_of(x, weight, stride, padding);
    const int64_t inputs = shape.inputs, outputs = shape.outputs;
    const at::Tensor y = shape.empty_output(x);
    const at::Tensor images = flat(x), kernels = flat(weight), sums = flat(y).zero_();
    for (const Run& run : shape.runs()) {
      const at::Tensor from = images.narrow(1, run.image * inputs, run.count * inputs);
      const at::Tensor by = kernels.narrow(1, run.kernel * inputs, run.count * inputs);
      sums.narrow(1, run.out * outputs, outputs).addmm_(from, by.t());
    }
    context->save_for_backward({x, weight});
    context->saved_data["stride"] = stride;
    context->saved_data["padding"] = padding;
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const int64_t stride = context->saved_data["stride"].toInt(), padding = context->saved_data["padding"].toInt();
    const Shape shape = shape_of(x, weight, stride, padding);
    const int64_t inputs = shape.inputs, outputs = shape.outputs;
    const at::Tensor dy = flat(gradients[0].contiguous(at::MemoryFormat::ChannelsLast));
    at::Tensor dx, d_weight;
    if (context->needs_input_grad(0)) {
      dx = at::empty_like(x, {}, at::MemoryFormat::ChannelsLast);
      const at::Tensor kernels = flat(weight), sums = flat(dx).zero_();
      for (const Run& run : shape.runs()) {
        const at::Tensor by = kernels.narrow(1, run.kernel * inputs, run.count * inputs);
        sums.narrow(1, run.image * inputs, run.count * inputs).addmm_(dy.narrow(1, run.out * outputs, outputs), by);
      }
    }
    if (context->needs_input_grad(1)) {
      d_weight = at::empty_like(weight, {}, at::MemoryFormat::ChannelsLast);
      const at::Tensor images = flat(x), sums = flat(d_weight).zero_();
      for (const Run& run : shape.runs()) {
        const at::Tensor from = images.narrow(1, run.image * inputs, run.count * inputs);
        sums.narrow(1, run.kernel * inputs, run.count * inputs)
            .addmm_(dy.narrow(1, run.out * outputs, outputs).t(), from);
      }
    }
    return {dx, d_weight, {}, {}};
  }
};

// The parts of two matrices whose products are summed in one pixel of an output, an image or a kernel.
struct Parts {
  std::vector<at::Tensor> left, right;

  void add(const at::Tensor& to_left, const at::Tensor& to_right) {
    left.push_back(to_left);
    right.push_back(to_right);
  }
};

// Writes into the pixels of `sums`, each of `channels`, what `multiply` makes of their parts.
template <typename Multiply>
void write(const at::Tensor& sums, int64_t channels, const std::vector<Parts>& pixels, Multiply multiply) {
  for (size_t pixel = 0; pixel < pixels.size(); ++pixel) {
    const at::Tensor sum = sums.narrow(1, pixel * channels, channels);
    if (pixels[pixel].left.empty()) {
      sum.zero_();
    } else {
      sum.copy_(multiply(pixels[pixel]));
    }
  }
}

// In bf16 a product is of all that meets in a pixel, gathered, so that its sum is rounded once, as oneDNN's is.
struct ConvolveInHalf : torch::autograd::Function<ConvolveInHalf> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            int64_t stride, int64_t padding) {
    context->save_for_backward({x, weight});
    context->saved_data["stride"] = stride;
    context->saved_data["padding"] = padding;
    const Shape shape = shape_of(x, weight, stride, padding);
    if (shape.out_pixels() <= kMost) return output(shape, x, weight);
    return at::conv2d(x, weight, {}, {stride, stride}, at::IntArrayRef{padding, padding});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const int64_t stride = context->saved_data["stride"].toInt(), padding = context->saved_data["padding"].toInt();
    const Shape shape = shape_of(x, weight, stride, padding);
    const at::Tensor dy = gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    at::Tensor dx, d_weight;
    if (context->needs_input_grad(0)) {
      if (shape.out_pixels() <= kMost) {
        dx = image_gradient(shape, x, weight, dy);
      } else {
        dx = std::get<0>(at::convolution_backward(dy, x, weight, c10::nullopt, {stride, stride}, {padding, padding},
                                                  {1, 1}, false, {0, 0}, 1, {true, false, false}));
      }
    }
    if (context->needs_input_grad(1)) d_weight = kernel_gradient(shape, x, weight, dy);
    return {dx, d_weight, {}, {}};
  }

  static at::Tensor output(const Shape& shape, const at::Tensor& x, const at::Tensor& weight) {
    const int64_t inputs = shape.inputs, outputs = shape.outputs;
    const at::Tensor images = flat(x), kernels = flat(weight);
    std::vector<Parts> pixels(shape.out_pixels());
    for (const Run& run : shape.runs()) {
      pixels[run.out].add(images.narrow(1, run.image * inputs, run.count * inputs),
                          kernels.narrow(1, run.kernel * inputs, run.count * inputs));
    }
    const at::Tensor y = shape.empty_output(x);
    write(flat(y), outputs, pixels,
          [](const Parts& parts) { return at::mm(at::cat(parts.left, 1), at::cat(parts.right, 1).t()); });
    return y;
  }

  static at::Tensor image_gradient(const Shape& shape, const at::Tensor& x, const at::Tensor& weight,
                                   const at::Tensor& dy) {
    const int64_t inputs = shape.inputs, outputs = shape.outputs;
    const at::Tensor above = flat(dy), kernels = flat(weight);
    std::vector<Parts> pixels(shape.height * shape.width);
    for (const Run& run : shape.runs()) {
      for (int64_t pixel = 0; pixel < run.count; ++pixel) {
        pixels[run.image + pixel].add(above.narrow(1, run.out * outputs, outputs),
                                      kernels.narrow(1, (run.kernel + pixel) * inputs, inputs));
      }
    }
    const at::Tensor dx = at::empty_like(x, {}, at::MemoryFormat::ChannelsLast);
    write(flat(dx), inputs, pixels,
          [](const Parts& parts) { return at::mm(at::cat(parts.left, 1), at::cat(parts.right)); });
    return dx;
  }

  static at::Tensor kernel_gradient(const Shape& shape, const at::Tensor& x, const at::Tensor& weight,
                                    const at::Tensor& dy) {
    const int64_t inputs = shape.inputs, outputs = shape.outputs;
    const at::Tensor above = flat(dy), images = flat(x);
    std::vector<Parts> pixels(shape.kernel_height * shape.kernel_width);
    for (const Run& run : shape.runs()) {
      for (int64_t pixel = 0; pixel < run.count; ++pixel) {
        pixels[run.kernel + pixel].add(above.narrow(1, run.out * outputs, outputs),
                                       images.narrow(1, (run.image + pixel) * inputs, inputs));
      }
    }
    const at::Tensor d_weight = at::empty_like(weight, {}, at::MemoryFormat::ChannelsLast);
    write(flat(d_weight), inputs, pixels,
          [](const Parts& parts) { return at::mm(at::cat(parts.left).t(), at::cat(parts.right)); });
    return d_weight;
  }
};

bool fits(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.dim() == 4 && tensor.numel() > 0 &&
         tensor.is_contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

extern "C" {

// `out` stays null where the tensors are none that this can do, or would gain nothing.
char* relabel_torch_convolve_small_map(const at::Tensor* x, const at::Tensor* weight, int64_t stride, int64_t padding,
                                       at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
    const bool cast = at::autocast::is_autocast_enabled(at::kCPU);
    if (cast && at::autocast::get_autocast_dtype(at::kCPU) != at::kBFloat16) return;
    if (!fits(*x) || !fits(*weight) || x->size(1) != weight->size(1)) return;
    if (!cast && (x->scalar_type() != at::kFloat || weight->scalar_type() != at::kFloat)) return;
    const Shape shape = shape_of(*x, *weight, stride, padding);
    const bool one_pixel = shape.kernel_height * shape.kernel_width == 1;
    if (one_pixel || shape.out_height() < 1 || shape.out_width() < 1) return;
    if (shape.out_pixels() > (cast ? kMostInHalf : kMost)) return;
    if (cast) {
      const at::Tensor in_half = at::autocast::cached_cast(at::kBFloat16, *x, at::kCPU);
      const at::Tensor by = at::autocast::cached_cast(at::kBFloat16, *weight, at::kCPU);
      *out = new at::Tensor(ConvolveInHalf::apply(in_half, by, stride, padding));
    } else {
      *out = new at::Tensor(Convolve::apply(*x, *weight, stride, padding));
    }
  });
}

}  // extern "C"
