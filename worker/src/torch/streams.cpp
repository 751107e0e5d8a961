// Work that one thread queues on a GPU, beside that of another. By libtorch's guard of the device's kind, which its part
// for CUDA registers where it is loaded.

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>

#include "guarded.h"

namespace {

c10::Device gpu(int index) { return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)); }

c10::impl::VirtualGuardImpl guard() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA); }

}  // namespace

extern "C" {

// Has this thread queue on a stream of its own from now on.
char* relabel_torch_own_stream(int index) {
  return guarded([&] {
    guard().setDevice(gpu(index));
    guard().exchangeStream(guard().getStreamFromGlobalPool(gpu(index)));
  });
}

// What this thread has queued so far.
char* relabel_torch_mark(int index, c10::Event** out) {
  return guarded([&] {
    auto event = std::make_unique<c10::Event>(c10::DeviceType::CUDA);
    event->record(guard().getStream(gpu(index)));
    *out = event.release();
  });
}

void relabel_torch_free_mark(c10::Event* mark) { delete mark; }

// Has what this thread queues from now on wait for what was marked, which made `tensors`. Their memory is not used for
// others before what this thread queues with them is done, whenever they are dropped.
char* relabel_torch_after(int index, const c10::Event* mark, at::Tensor* const* tensors, size_t count) {
  return guarded([&] {
    auto stream = guard().getStream(gpu(index));
    mark->block(stream);
    for (size_t i = 0; i < count; ++i) tensors[i]->record_stream(stream);
  });
}

// These bytes on the GPU, by way of pinned memory, which libtorch keeps until the copy is done; `data` is only read in this
// call.
char* relabel_torch_send(const void* data, int64_t count, int index, at::Tensor** out) {
  return guarded([&] {
    auto bytes = at::TensorOptions().dtype(at::kByte);
    auto pinned = at::from_blob(const_cast<void*>(data), {count}, bytes).pin_memory();
    *out = new at::Tensor(pinned.to(bytes.device(gpu(index)), /*non_blocking=*/true));
  });
}

}  // extern "C"
