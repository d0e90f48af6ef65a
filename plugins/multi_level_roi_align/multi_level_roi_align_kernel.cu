// MultiLevelRoiAlign on the GPU.
//
// The average of bilinear samples is separable: sum over a bin = sum over its rows of weight_y * sum over its columns of
// weight_x * pixel. A block therefore adds up, once per RoI, how much each pixel column and row weighs in each bin, and
// then reads every pixel of a bin once instead of four times per sample. Maxima, and bins too many for the tables, are
// computed sample by sample. (Going through the columns of a row of bins, which reads 30 % less, leaves too few loads in
// flight: on an H200 it took 0.54 ms where this takes 0.40.)
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <limits>
#include <type_traits>

#include "plugins/common/strides.h"
#include "plugins/multi_level_roi_align/multi_level_roi_align_kernel.h"
#include "plugins/multi_level_roi_align/multi_level_roi_align_math.h"
#include "plugins/multi_level_roi_align/quantized.h"
#include "plugins/roi_align/roi_align_math.h"

namespace maskrcnn {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kMaxGridX = 0x7fffffff;
constexpr int kMaxGridY = 65535;

constexpr int kMaxTableBins = 64;
// All bins of an axis together: a map of 900 px and 60 bins fit, whatever the RoI; what does not fit goes sample by sample.
constexpr int kMaxTableWeights = 1024;
constexpr int kMaxStageBytes = 32768;  // with the tables below 48 KB, and six blocks on a multiprocessor of an H200
constexpr int kMinLanes = 8;           // read 128 bytes of a pixel together
constexpr int kEnoughBlocks = 256;     // for a large GPU; where RoIs are fewer, their channels are split
constexpr int kLinearChannels = 64;    // per block, where the input is NCHW

// What the kernels get. The reciprocal is a parameter, too, as an operand from there takes no register.
struct Arguments : MultiLevelRoiAlignArguments {
  float output_reciprocal;  // of output_scale; NaN where that is not a normal number
};

__device__ float to_float(float value) { return value; }
__device__ float to_float(__half value) { return __half2float(value); }
__device__ float to_float(int8_t value) { return static_cast<float>(value); }

template <typename T>
__device__ T from_float(float value, const Arguments& in);
template <>
__device__ float from_float<float>(float value, const Arguments&) {
  return value;
}
template <>
__device__ __half from_float<__half>(float value, const Arguments&) {
  return __float2half_rn(value);
}
// quantized(), to the bit, and seldom with its division. The reciprocal, its product with the value and the rounded
// quotient are off by 2^-24 of themselves each, so within -128 to 127 product and quotient are less than 2.5e-5 apart:
// where the product is more than 2^-15 = 3.1e-5 from the middle between two integers, both round to the same one. What
// is closer, and NaN, is divided.
template <>
__device__ int8_t from_float<int8_t>(float value, const Arguments& in) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: a sum with it is rounded half to even, its last byte the integer
  constexpr float kMargin = 1.f / 32768.f;
  const float product = value * in.output_reciprocal;
  const float clamped = fminf(fmaxf(product, -128.f), 127.f);
  const float sum = clamped + kRound;
  const float rest = fabsf(clamped - (sum - kRound));
  if (rest < 0.5f - kMargin && product == product) return static_cast<int8_t>(__float_as_uint(sum));
  return quantized(value, in.output_scale);
}

// What a block needs to know about its RoI.
struct Roi {
  bool valid;
  const void* image;  // of the RoI's level and batch index
  Strides strides;
  int height, width;
  RoiAxis y, x;
  float feature_scale;  // 1 of floats
};

template <typename T>
__device__ Roi find_roi(const Arguments& in, int64_t index) {
  float roi[5];
  for (int i = 0; i < 5; ++i) roi[i] = in.rois[index * 5 + i];
  Roi out{};
  out.valid = is_valid_roi(roi, in.batch);
  if (!out.valid) return out;
  const int number = in.num_levels > 1 ? roi_level(roi, in.finest_scale, in.num_levels) : 0;
  // Indexing the kernel's parameters with a run-time number would copy them to local memory.
  RoiAlignLevel level = in.levels[0];
#pragma unroll
  for (int i = 1; i < kMaxRoiAlignLevels; ++i) {
    if (i == number) level = in.levels[i];
  }
  out.strides = strides_of(in.channels, level.height, level.width, in.feature_layout);
  out.image = static_cast<const T*>(level.data) + static_cast<int64_t>(roi[0]) * out.strides.image;
  out.height = level.height;
  out.width = level.width;
  out.feature_scale = std::is_same<T, int8_t>::value ? level.feature_scale : 1.f;
  out.y = roi_axis(roi[2], roi[4], level.spatial_scale, in.aligned, in.output_height, in.sampling_ratio);
  out.x = roi_axis(roi[1], roi[3], level.spatial_scale, in.aligned, in.output_width, in.sampling_ratio);
  return out;
}

__device__ float samples_per_bin(const Roi& roi) {
  return static_cast<float>(max(roi.y.num_samples * roi.x.num_samples, 1));
}

// One element, sample by sample. A sample outside the map counts as 0: it adds nothing to an average, and a maximum
// needs to see one of them only.
template <typename T>
__device__ float align_element(const Roi& roi, TensorLayout layout, PoolMode mode, int64_t channel, int ph, int pw) {
  const T* plane = static_cast<const T*>(roi.image) + channel_offset(channel, roi.height, roi.width, layout);
  float sum = 0.f;
  float best = kMaxPoolStart;
  for (int i = 0; i < roi.y.num_samples; ++i) {
    const AxisTap y = axis_tap(sample_position(roi.y, ph, i), roi.height);
    if (!y.inside) {
      if (roi.x.num_samples > 0) best = fmaxf(best, 0.f);
      continue;
    }
    const T* low = plane + y.low * roi.strides.row;
    const T* high = plane + y.high * roi.strides.row;
    for (int j = 0; j < roi.x.num_samples; ++j) {
      const AxisTap x = axis_tap(sample_position(roi.x, pw, j), roi.width);
      if (!x.inside) {
        best = fmaxf(best, 0.f);
        continue;
      }
      float value = y.low_weight * x.low_weight * to_float(low[x.low * roi.strides.column]) +
                    y.low_weight * x.high_weight * to_float(low[x.high * roi.strides.column]) +
                    y.high_weight * x.low_weight * to_float(high[x.low * roi.strides.column]) +
                    y.high_weight * x.high_weight * to_float(high[x.high * roi.strides.column]);
      if (std::is_same<T, int8_t>::value) value *= roi.feature_scale;
      sum += value;
      if (value > best) best = value;
    }
  }
  return mode == PoolMode::kAvg ? sum / samples_per_bin(roi) : best;
}

// Where an output element goes; padding has channels of its own.
__device__ int64_t output_offset(const Arguments& in, int64_t roi, int64_t channel, int ph, int pw) {
  const Strides strides = strides_of(in.channels, in.output_height, in.output_width, in.output_layout);
  return roi * strides.image + channel_offset(channel, in.output_height, in.output_width, in.output_layout) +
         ph * strides.row + pw * strides.column;
}

// Elements begin, begin + step, ... of RoI `roi_index`, counted as (channel, bin).
template <typename In, typename Out>
__device__ __noinline__ void align_elements(const Arguments& in, const Roi& roi, int64_t roi_index, int64_t begin,
                                            int64_t end, int64_t step) {
  const int64_t bins = static_cast<int64_t>(in.output_height) * in.output_width;
  Out* output = static_cast<Out*>(in.output);
  for (int64_t i = begin; i < end; i += step) {
    const int64_t channel = i / bins;
    const int bin = static_cast<int>(i % bins);
    const int ph = bin / in.output_width;
    const int pw = bin % in.output_width;
    const bool computed = roi.valid && channel < in.channels;
    const float value = computed ? align_element<In>(roi, in.feature_layout, in.mode, channel, ph, pw) : 0.f;
    output[output_offset(in, roi_index, channel, ph, pw)] = from_float<Out>(value, in);
  }
}

// Block x, y: RoI x, and every gridDim.y-th share of its elements.
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads) align_by_samples(const __grid_constant__ Arguments in) {
  __shared__ Roi roi;
  if (threadIdx.x == 0) roi = find_roi<In>(in, blockIdx.x);
  __syncthreads();
  const int64_t bins = static_cast<int64_t>(in.output_height) * in.output_width;
  align_elements<In, Out>(in, roi, blockIdx.x, static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x,
                          stored_channels(in.channels, in.output_layout) * bins,
                          static_cast<int64_t>(gridDim.y) * kThreads);
}

// How much each pixel of an axis weighs in each bin: those of bin b are weights[begin[b]] ... weights[begin[b + 1] - 1],
// for the pixels from first[b] on.
struct AxisTable {
  float weights[kMaxTableWeights];
  int begin[kMaxTableBins + 1];
  int first[kMaxTableBins];
};

struct Tables {
  AxisTable y, x;
};

__device__ int find_pixels(const RoiAxis& axis, int bin, int size, int& first) {
  int low = size;
  int high = -1;
  for (int i = 0; i < axis.num_samples; ++i) {
    const AxisTap tap = axis_tap(sample_position(axis, bin, i), size);
    if (!tap.inside) continue;
    low = min(low, tap.low);
    high = max(high, tap.high);
  }
  first = low;
  return max(high - low + 1, 0);
}

__device__ void add_weights(const RoiAxis& axis, int bin, int size, int first, float* weights, int count) {
  for (int i = 0; i < count; ++i) weights[i] = 0.f;
  for (int i = 0; i < axis.num_samples; ++i) {
    const AxisTap tap = axis_tap(sample_position(axis, bin, i), size);
    if (!tap.inside) continue;
    weights[tap.low - first] += tap.low_weight;
    weights[tap.high - first] += tap.high_weight;
  }
}

// One thread per bin and axis. Returns false, for all threads alike, where the weights do not fit.
__device__ bool fill_tables(Tables& tables, const Roi& roi, int num_y, int num_x) {
  const int thread = threadIdx.x;
  const bool is_y = thread < num_y;
  const int bin = is_y ? thread : thread - num_y;
  const bool has_bin = thread < num_y + num_x;
  AxisTable& table = is_y ? tables.y : tables.x;
  const RoiAxis axis = is_y ? roi.y : roi.x;
  const int size = is_y ? roi.height : roi.width;
  if (has_bin) table.begin[bin + 1] = find_pixels(axis, bin, size, table.first[bin]);
  __syncthreads();
  if (thread < 2) {
    AxisTable& sums = thread == 0 ? tables.y : tables.x;
    const int num_bins = thread == 0 ? num_y : num_x;
    int64_t sum = 0;
    sums.begin[0] = 0;
    for (int b = 0; b < num_bins; ++b) {
      sum += sums.begin[b + 1];
      sums.begin[b + 1] = static_cast<int>(sum <= kMaxTableWeights ? sum : kMaxTableWeights + 1);
    }
  }
  __syncthreads();
  if (tables.y.begin[num_y] > kMaxTableWeights || tables.x.begin[num_x] > kMaxTableWeights) return false;
  if (has_bin) {
    const int begin = table.begin[bin];
    add_weights(axis, bin, size, table.first[bin], table.weights + begin, table.begin[bin + 1] - begin);
  }
  __syncthreads();
  return true;
}

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector < 16 ? sizeof(T) * kVector : 16) Pack {
  T values[kVector];
};

// Goes through the pixels of a bin, row by row, and reads kVector channels of each. first: the bin's first pixel. step,
// row_step: from a pixel to the next one of its row and of its column, in elements.
template <typename T, int kVector>
class Pixels {
 public:
  __device__ Pixels(const T* first, int64_t step, int64_t row_step, int)
      : row_(first), step_(step), row_step_(row_step), pixel_(first) {}

  __device__ void read(float (&floats)[kVector]) const {
    const Pack<T, kVector> pack = *reinterpret_cast<const Pack<T, kVector>*>(pixel_);
#pragma unroll
    for (int k = 0; k < kVector; ++k) floats[k] = to_float(pack.values[k]);
  }

  __device__ void next_column() { pixel_ += step_; }

  __device__ void next_row() {
    row_ += row_step_;
    pixel_ = row_;
  }

 private:
  const T* row_;
  int64_t step_, row_step_;
  const T* pixel_;
};

// INT8 is read as words at 32-bit offsets, which count loads of 16 bytes; has_32_bit_offsets says of which maps. A Pack
// of bytes is taken apart and put together again, and pointers are two registers each: for an H200, four pixels are 459
// instructions that way and 276 this way, 192 of them conversions and sums.
template <>
class Pixels<int8_t, 16> {
 public:
  __device__ Pixels(const int8_t* first, int64_t step, int64_t row_step, int num_columns)
      : first_(reinterpret_cast<const uint4*>(first)),
        step_(static_cast<uint32_t>(step / 16)),
        row_end_step_(static_cast<uint32_t>((row_step - num_columns * step) / 16)) {}

  __device__ void read(float (&floats)[16]) const {
    const uint4 words = __ldg(first_ + offset_);
    unpack(words.x, floats);
    unpack(words.y, floats + 4);
    unpack(words.z, floats + 8);
    unpack(words.w, floats + 12);
  }

  __device__ void next_column() { offset_ += step_; }

  __device__ void next_row() { offset_ += row_end_step_; }

 private:
  // 2^23 holds a byte in its last digits: permuting and adding are faster than converting.
  __device__ static void unpack(uint32_t word, float* floats) {
    const uint32_t flipped = word ^ 0x80808080u;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      floats[k] = __uint_as_float(__byte_perm(flipped, 0x4b000000u, 0x7440u + k)) - (8388608.f + 128.f);
    }
  }

  const uint4* first_;
  uint32_t step_, row_end_step_;  // the latter from behind a row's last column
  uint32_t offset_ = 0;
};

// kVector channels of one bin, added up from channels-last features. pixel: the image's first, of the first channel.
template <typename T, int kVector>
__device__ void sum_pixels(float (&sums)[kVector], const T* image, const Roi& roi, const Tables& tables, int ph,
                           int pw) {
  const int y_begin = tables.y.begin[ph];
  const int y_count = tables.y.begin[ph + 1] - y_begin;
  const int x_begin = tables.x.begin[pw];
  const int x_count = tables.x.begin[pw + 1] - x_begin;
  const T* first = image + tables.y.first[ph] * roi.strides.row + tables.x.first[pw] * roi.strides.column;
  Pixels<T, kVector> pixels(first, roi.strides.column, roi.strides.row, x_count);
  // One loop over both axes: a bin's rows are too short to keep several loads in flight each.
  const int count = y_count * x_count;
  int i = 0;
  int j = 0;
  constexpr int kUnroll = kVector == 1 ? 8 : 4;
#pragma unroll kUnroll
  for (int n = 0; n < count; ++n) {
    const float weight = tables.y.weights[y_begin + i] * tables.x.weights[x_begin + j];
    float floats[kVector];
    pixels.read(floats);
#pragma unroll
    for (int k = 0; k < kVector; ++k) sums[k] += weight * floats[k];
    pixels.next_column();
    if (++j == x_count) {
      j = 0;
      ++i;
      pixels.next_row();
    }
  }
}

// Copies `count` staged elements to their place, 16 bytes at a time where that is aligned.
template <typename T>
__device__ void copy_out(T* to, const T* staged, int count) {
  constexpr int kPerStore = 16 / sizeof(T);
  int done = 0;
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    done = count / kPerStore * kPerStore;
    for (int i = threadIdx.x; i < count / kPerStore; i += kThreads) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(staged)[i];
    }
  }
  for (int i = done + threadIdx.x; i < count; i += kThreads) to[i] = staged[i];
}

// Averages from channels-last features. Block x, y: RoI x, every gridDim.y-th run of kVector * lanes channels, where
// `lanes` (a power of 2, at most 32) threads of a warp take one bin together. NCHW output (`kLinear`) is staged in
// shared memory, as (channel, bin), which is the order of the output.
template <typename In, typename Out, int kVector, bool kLinear>
__global__ void __launch_bounds__(kThreads) average_channels_last(const __grid_constant__ Arguments in,
                                                                  int lanes) {
  __shared__ Tables tables;
  __shared__ Roi roi;
  extern __shared__ uint4 stage_memory[];
  Out* stage = reinterpret_cast<Out*>(stage_memory);
  const int64_t roi_index = blockIdx.x;
  if (threadIdx.x == 0) roi = find_roi<In>(in, roi_index);
  __syncthreads();
  const int bins = in.output_height * in.output_width;
  const bool tabled = roi.valid && fill_tables(tables, roi, in.output_height, in.output_width);
  const float scale = roi.feature_scale / samples_per_bin(roi);
  const int64_t channels_out = stored_channels(in.channels, in.output_layout);
  const int64_t column = strides_of(in.channels, in.output_height, in.output_width, in.output_layout).column;
  const int run = kVector * lanes;
  const int team = threadIdx.x / lanes;
  const int num_teams = kThreads / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  Out* output = static_cast<Out*>(in.output);

  for (int64_t run_begin = static_cast<int64_t>(blockIdx.y) * run; run_begin < channels_out;
       run_begin += static_cast<int64_t>(gridDim.y) * run) {
    if (roi.valid && !tabled) {
      const int64_t end = min(run_begin + run, channels_out) * bins;
      align_elements<In, Out>(in, roi, roi_index, run_begin * bins + threadIdx.x, end, kThreads);
      continue;
    }
    const int64_t channel = run_begin + lane * kVector;
    const In* image =
        static_cast<const In*>(roi.image) + channel_offset(channel, roi.height, roi.width, in.feature_layout);
    Out* to = kLinear ? stage + lane * kVector * bins
                      : output + output_offset(in, roi_index, channel, 0, 0);
    const int bin_step = kLinear ? 1 : static_cast<int>(column);
    const int num_stored = static_cast<int>(min(static_cast<int64_t>(kVector), channels_out - channel));
    const int num_computed = static_cast<int>(min(static_cast<int64_t>(kVector), in.channels - channel));
    const bool packed = channels_out % kVector == 0 && num_computed == kVector;
    const auto write = [&](int bin, const float(&sums)[kVector]) {
      Pack<Out, kVector> values;
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const float value = kLinear || k < num_computed ? sums[k] * scale : 0.f;
        values.values[k] = from_float<Out>(value, in);
      }
      Out* bin_to = to + bin * bin_step;
      if (!kLinear && packed) {
        *reinterpret_cast<Pack<Out, kVector>*>(bin_to) = values;
        return;
      }
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (kLinear || k < num_stored) bin_to[kLinear ? k * bins : k] = values.values[k];
      }
    };
    for (int bin = team; bin < bins && channel < channels_out; bin += num_teams) {
      const int ph = bin / in.output_width;
      float sums[kVector] = {};
      if (tabled && channel < in.channels) {
        sum_pixels<In, kVector>(sums, image, roi, tables, ph, bin - ph * in.output_width);
      }
      write(bin, sums);
    }
    if (!kLinear) continue;
    __syncthreads();
    const int channels_here = static_cast<int>(min(static_cast<int64_t>(run), in.channels - run_begin));
    copy_out(output + (roi_index * in.channels + run_begin) * bins, stage, channels_here * bins);
    __syncthreads();
  }
}

// Averages from NCHW features: one thread per output element, neighbours on neighbouring bins.
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads) average_linear(const __grid_constant__ Arguments in) {
  __shared__ Tables tables;
  __shared__ Roi roi;
  const int64_t roi_index = blockIdx.x;
  if (threadIdx.x == 0) roi = find_roi<In>(in, roi_index);
  __syncthreads();
  const int bins = in.output_height * in.output_width;
  const bool tabled = roi.valid && fill_tables(tables, roi, in.output_height, in.output_width);
  const float scale = roi.feature_scale / samples_per_bin(roi);
  const int64_t channels_out = stored_channels(in.channels, in.output_layout);
  Out* output = static_cast<Out*>(in.output);
  for (int64_t run_begin = static_cast<int64_t>(blockIdx.y) * kLinearChannels; run_begin < channels_out;
       run_begin += static_cast<int64_t>(gridDim.y) * kLinearChannels) {
    const int channels_here = static_cast<int>(min(static_cast<int64_t>(kLinearChannels), channels_out - run_begin));
    if (roi.valid && !tabled) {
      const int64_t begin = run_begin * bins;
      align_elements<In, Out>(in, roi, roi_index, begin + threadIdx.x, begin + channels_here * bins, kThreads);
      continue;
    }
    for (int i = threadIdx.x; i < channels_here * bins; i += kThreads) {
      const int64_t channel = run_begin + i / bins;
      const int bin = i % bins;
      const int ph = bin / in.output_width;
      const int pw = bin - ph * in.output_width;
      float sums[1] = {0.f};
      if (tabled && channel < in.channels) {
        const In* plane = static_cast<const In*>(roi.image) + channel * roi.strides.channel;
        sum_pixels<In, 1>(sums, plane, roi, tables, ph, pw);
        sums[0] *= scale;
      }
      output[output_offset(in, roi_index, channel, ph, pw)] = from_float<Out>(sums[0], in);
    }
  }
}

unsigned grid_y(int64_t count, int64_t per_block) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < kMaxGridY ? blocks : kMaxGridY);
}

bool is_aligned(const Arguments& in, size_t bytes) {
  for (int i = 0; i < in.num_levels; ++i) {
    if (reinterpret_cast<uintptr_t>(in.levels[i].data) % bytes != 0) return false;
  }
  return true;
}

// Whether Pixels<int8_t, 16> reaches every pixel of an image: up to 64 GB.
bool has_32_bit_offsets(const Arguments& in) {
  for (int i = 0; i < in.num_levels; ++i) {
    const RoiAlignLevel& level = in.levels[i];
    const int64_t image = strides_of(in.channels, level.height, level.width, in.feature_layout).image;
    if (image / 16 > std::numeric_limits<uint32_t>::max()) return false;
  }
  return true;
}

template <typename In, typename Out, int kVector>
void launch_channels_last(const Arguments& in, int lanes, size_t stage_bytes, cudaStream_t stream) {
  const int64_t channels_out = stored_channels(in.channels, in.output_layout);
  const dim3 grid(static_cast<unsigned>(in.num_rois), grid_y(channels_out, static_cast<int64_t>(kVector) * lanes));
  if (in.output_layout == TensorLayout::kNchw) {
    average_channels_last<In, Out, kVector, true><<<grid, kThreads, stage_bytes, stream>>>(in, lanes);
  } else {
    average_channels_last<In, Out, kVector, false><<<grid, kThreads, 0, stream>>>(in, lanes);
  }
}

template <typename In, typename Out>
void launch_typed(const Arguments& in, cudaStream_t stream) {
  const int64_t bins = static_cast<int64_t>(in.output_height) * in.output_width;
  const int64_t channels_out = stored_channels(in.channels, in.output_layout);
  const bool fits_tables = in.output_height <= kMaxTableBins && in.output_width <= kMaxTableBins;
  const unsigned rois = static_cast<unsigned>(in.num_rois);
  if (in.mode == PoolMode::kMax || !fits_tables) {
    align_by_samples<In, Out><<<dim3(rois, grid_y(channels_out * bins, kThreads * 4)), kThreads, 0, stream>>>(in);
    return;
  }
  if (in.feature_layout == TensorLayout::kNchw) {
    average_linear<In, Out><<<dim3(rois, grid_y(channels_out, kLinearChannels)), kThreads, 0, stream>>>(in);
    return;
  }
  constexpr int kPerLoad = 16 / sizeof(In);
  const bool vectors = stored_channels(in.channels, in.feature_layout) % kPerLoad == 0 && is_aligned(in, 16) &&
                       (!std::is_same<In, int8_t>::value || has_32_bit_offsets(in));
  const int64_t vector = vectors ? kPerLoad : 1;
  const bool staged = in.output_layout == TensorLayout::kNchw;
  int lanes = kWarp;
  const auto fills_gpu = [&] { return in.num_rois * grid_y(channels_out, lanes * vector) >= kEnoughBlocks; };
  while (lanes > 1 && ((lanes / 2) * vector >= channels_out || (lanes > kMinLanes && !fills_gpu()) ||
                       (staged && lanes * vector * bins * static_cast<int64_t>(sizeof(Out)) > kMaxStageBytes))) {
    lanes /= 2;
  }
  const size_t stage_bytes = staged ? (lanes * vector * bins * sizeof(Out) + 15) / 16 * 16 : 0;
  if (stage_bytes > kMaxStageBytes) {
    align_by_samples<In, Out><<<dim3(rois, grid_y(channels_out * bins, kThreads * 4)), kThreads, 0, stream>>>(in);
  } else if (vectors) {
    launch_channels_last<In, Out, kPerLoad>(in, lanes, stage_bytes, stream);
  } else {
    launch_channels_last<In, Out, 1>(in, lanes, stage_bytes, stream);
  }
}

template <typename In>
void launch_from_floats(const Arguments& in, cudaStream_t stream) {
  if (in.output_type == ElementType::kInt8) {
    launch_typed<In, int8_t>(in, stream);
  } else if (in.output_type == ElementType::kHalf) {
    launch_typed<In, __half>(in, stream);
  } else {
    launch_typed<In, float>(in, stream);
  }
}

bool is_floating(ElementType type) { return type == ElementType::kFloat || type == ElementType::kHalf; }

bool is_scale(float scale) { return scale > 0.f && std::isfinite(scale); }

bool is_output(ElementType type, TensorLayout layout, float scale) {
  if (type == ElementType::kInt8) return is_scale(scale);
  return is_floating(type) && layout != TensorLayout::kNchw32;
}

bool is_valid(const MultiLevelRoiAlignArguments& in) {
  if (in.num_levels < 1 || in.num_levels > kMaxRoiAlignLevels || in.batch < 0 || in.channels < 0) return false;
  if (in.num_rois < 0 || in.num_rois > kMaxGridX) return false;
  for (int i = 0; i < in.num_levels; ++i) {
    if (in.levels[i].height < 1 || in.levels[i].width < 1) return false;
  }
  const bool bins_in_range = in.output_height >= 1 && in.output_height <= 32767 && in.output_width >= 1 &&
                             in.output_width <= 32767;
  bool has_types = is_output(in.output_type, in.output_layout, in.output_scale);
  if (in.feature_type == ElementType::kInt8) {
    for (int i = 0; i < in.num_levels; ++i) has_types = has_types && is_scale(in.levels[i].feature_scale);
    has_types = has_types && in.output_type == ElementType::kInt8;
  } else {
    has_types = has_types && is_floating(in.feature_type) && in.feature_layout != TensorLayout::kNchw32;
  }
  return bins_in_range && has_types;
}

}  // namespace

cudaError_t launch_multi_level_roi_align(const MultiLevelRoiAlignArguments& arguments, cudaStream_t stream) {
  if (!is_valid(arguments)) return cudaErrorInvalidValue;
  if (arguments.num_rois == 0 || arguments.channels == 0) return cudaSuccess;
  const float reciprocal = 1.f / arguments.output_scale;
  const Arguments in{arguments, std::isnormal(reciprocal) ? reciprocal : std::nanf("")};
  if (in.feature_type == ElementType::kInt8) {
    launch_typed<int8_t, int8_t>(in, stream);
  } else if (in.feature_type == ElementType::kHalf) {
    launch_from_floats<__half>(in, stream);
  } else {
    launch_from_floats<float>(in, stream);
  }
  return cudaGetLastError();
}

}  // namespace maskrcnn
