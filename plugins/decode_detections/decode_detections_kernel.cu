// DecodeDetections on the GPU: a warp per proposal, a lane per class at a time. Classes are neighbours in memory: lanes
// read and write whole lines. Logits are read three times, two of them from the cache.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "plugins/decode_detections/decode_detections_kernel.h"
#include "plugins/decode_detections/decode_detections_math.h"

namespace maskrcnn {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 128;  // few, so that a batch of one reaches every multiprocessor
constexpr int kWarps = kThreads / kWarp;
constexpr int kPerLane = 4;  // loads in flight
constexpr int kPerWarp = kWarp * kPerLane;
constexpr int kMaxGridY = 65535;

using Arguments = DecodeDetectionsArguments;

struct Deltas {
  float values[4];
};

__device__ Deltas load_deltas(const float* at) {
  const float4 loaded = __ldg(reinterpret_cast<const float4*>(at));
  return {{loaded.x, loaded.y, loaded.z, loaded.w}};
}

__device__ Deltas load_deltas(const __half* at) {
  const uint2 loaded = __ldg(reinterpret_cast<const uint2*>(at));
  __half2 center, size;
  memcpy(&center, &loaded.x, sizeof(center));
  memcpy(&size, &loaded.y, sizeof(size));
  const float2 xy = __half22float2(center);
  const float2 wh = __half22float2(size);
  return {{xy.x, xy.y, wh.x, wh.y}};
}

// Calls visit(i, load(i)) for the lane's share of i = 0 ... count - 1; loads go ahead of visits.
template <typename Element, typename Load, typename Visit>
__device__ void visit_own(int32_t count, const Load& load, const Visit& visit) {
  const int lane = threadIdx.x % kWarp;
  for (int32_t first = lane; first < count; first += kPerWarp) {
    Element elements[kPerLane];
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) {
      const int32_t i = first + k * kWarp;
      elements[k] = i < count ? load(i) : Element{};
    }
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) {
      const int32_t i = first + k * kWarp;
      if (i < count) visit(i, elements[k]);
    }
  }
}

// All lanes of a warp call these, and all get the result.
__device__ float warp_largest(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  }
  return value;
}

__device__ float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// logits: num_classes + 1 of one proposal. All lanes of a warp call it.
template <typename T>
__device__ void write_scores(const T* logits, int32_t num_classes, float* scores) {
  const auto load = [=](int32_t i) { return static_cast<float>(__ldg(logits + i)); };
  float largest = -INFINITY;
  visit_own<float>(num_classes + 1, load, [&](int32_t, float logit) { largest = fmaxf(largest, logit); });
  largest = warp_largest(largest);
  float sum = 0.f;
  visit_own<float>(num_classes + 1, load, [&](int32_t, float logit) { sum += softmax_numerator(logit, largest); });
  sum = warp_sum(sum);
  visit_own<float>(num_classes, load,
                   [&](int32_t i, float logit) { scores[i] = softmax_numerator(logit, largest) / sum; });
}

template <typename T>
__device__ void write_boxes(const Arguments& in, int64_t row, float image_height, float image_width) {
  const float4 corners = __ldg(reinterpret_cast<const float4*>(in.proposals) + row);
  const Box proposal{corners.x, corners.y, corners.z, corners.w};
  const T* deltas = static_cast<const T*>(in.deltas);
  float4* boxes = reinterpret_cast<float4*>(in.boxes) + row * in.num_classes;
  visit_own<Deltas>(
      in.num_classes,
      [&](int32_t label) {
        return load_deltas(deltas + deltas_offset(row, label, in.num_classes, in.class_agnostic));
      },
      [&](int32_t label, const Deltas& own) {
        const Box box = decode_box(in.decoding, proposal, own.values, image_height, image_width);
        boxes[label] = make_float4(box.x1, box.y1, box.x2, box.y2);
      });
}

template <typename Logit, typename Delta>
__global__ void __launch_bounds__(kThreads) decode_detections(const __grid_constant__ Arguments in) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const int32_t count = in.count[b];
    const float image_height = in.image_sizes[2 * b];
    const float image_width = in.image_sizes[2 * b + 1];
    // The same for all lanes of a warp.
    for (int64_t p = first; p < in.num_proposals; p += step) {
      const int64_t row = b * in.num_proposals + p;
      write_boxes<Delta>(in, row, image_height, image_width);
      float* scores = in.scores + row * in.num_classes;
      if (p < count) {
        write_scores(static_cast<const Logit*>(in.logits) + row * (in.num_classes + 1), in.num_classes, scores);
      } else {
        for (int32_t i = threadIdx.x % kWarp; i < in.num_classes; i += kWarp) scores[i] = kNoCandidate;
      }
    }
  }
}

template <typename Logit, typename Delta>
void launch_typed(const Arguments& in, cudaStream_t stream) {
  const unsigned rows = static_cast<unsigned>((static_cast<int64_t>(in.num_proposals) + kWarps - 1) / kWarps);
  const unsigned images = static_cast<unsigned>(in.batch < kMaxGridY ? in.batch : kMaxGridY);
  decode_detections<Logit, Delta><<<dim3(rows, images), kThreads, 0, stream>>>(in);
}

template <typename Logit>
void launch_logits(const Arguments& in, cudaStream_t stream) {
  if (in.deltas_type == ElementType::kHalf) {
    launch_typed<Logit, __half>(in, stream);
  } else {
    launch_typed<Logit, float>(in, stream);
  }
}

bool is_read(ElementType type) { return type == ElementType::kFloat || type == ElementType::kHalf; }

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool is_valid(const Arguments& in) {
  const bool sizes = in.batch >= 0 && in.num_proposals >= 0 && in.num_classes >= 1 &&
                     in.num_classes <= kDecodeDetectionsMaxClasses;
  const bool aligned = is_aligned(in.deltas) && is_aligned(in.proposals) && is_aligned(in.boxes);
  return sizes && aligned && is_read(in.logits_type) && is_read(in.deltas_type);
}

}  // namespace

cudaError_t launch_decode_detections(const DecodeDetectionsArguments& in, cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  if (in.batch == 0 || in.num_proposals == 0) return cudaSuccess;
  if (in.logits_type == ElementType::kHalf) {
    launch_logits<__half>(in, stream);
  } else {
    launch_logits<float>(in, stream);
  }
  return cudaGetLastError();
}

}  // namespace maskrcnn
