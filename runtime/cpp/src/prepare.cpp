#include "prepare.h"

#include <algorithm>

#include "errors.h"
#include "plugins/prepare_images/prepare_images_math.h"

namespace maskrcnn {
namespace {

// COCO's run lengths hold no more.
constexpr std::int64_t kMostImagePixels = std::int64_t{1} << 29;

std::string words(const Image& image) {
  return joined(image.height, "x", image.width, " px (height x width) with ", image.channels, " channels");
}

bool takes_channels(int channels, const Metadata& metadata) {
  if (metadata.loads_grey) return channels == 1;
  if (!metadata.loads_unchanged) return channels == 3;
  // The exchange of two drops a fourth.
  return metadata.is_rgb ? channels == 3 || channels == 4 : channels == metadata.info.channels;
}

std::string expected_channels(const Metadata& metadata) {
  if (metadata.loads_grey) return "1";
  if (!metadata.loads_unchanged) return "3 (blue, green, red)";
  return metadata.is_rgb ? "3 or 4" : std::to_string(metadata.info.channels);
}

void check_buffer(const Image& image, const std::string& name) {
  if (image.pixels == nullptr) invalid(name, ": expected pixels, found a null pointer");
  const std::int64_t row_bytes = static_cast<std::int64_t>(image.width) * image.channels;
  if (image.row_pitch != 0 && image.row_pitch < row_bytes) {
    invalid(name, ": expected rows at least ", row_bytes, " bytes apart, found a row_pitch of ", image.row_pitch,
            "; it is in bytes, 0 of rows without a gap");
  }
  if (image.num_bytes == 0) return;
  const std::int64_t pitch = image.row_pitch == 0 ? row_bytes : image.row_pitch;
  // In floating point, as the pitch may be any number.
  const double needed = static_cast<double>(pitch) * (image.height - 1) + static_cast<double>(row_bytes);
  if (static_cast<double>(image.num_bytes) < needed) {
    invalid(name, ": expected a buffer of at least ", static_cast<std::uint64_t>(std::min(needed, 1e18)), " bytes for ",
            words(image), ", found one of ", image.num_bytes);
  }
}

template <typename Value>
void write(const Canvas& canvas, const Metadata& metadata, const Size& padded, float* out, const Value& value) {
  const int channels = metadata.info.channels;
  canvas.with_view([&](const auto& view) {
    for (int channel = 0; channel < channels; ++channel) {
      const int from = metadata.is_rgb ? 2 - channel : channel;
      float* plane = out + channel * padded.height * padded.width;
      for (std::int64_t y = 0; y < view.height; ++y) {
        const auto* pixel = view.row(y) + from;
        float* target = plane + y * padded.width;
        for (std::int64_t x = 0; x < view.width; ++x, pixel += view.channels) target[x] = value(channel, *pixel);
      }
    }
  });
}

void to_float(Canvas& canvas) {
  const View<std::uint8_t> view = canvas.bytes();
  const Size size = canvas.size();
  const std::int64_t row = size.width * view.channels;
  std::vector<float> out(static_cast<std::size_t>(size.height * row));
  for (std::int64_t y = 0; y < size.height; ++y) std::copy_n(view.row(y), row, out.data() + y * row);
  canvas.take(std::move(out), size, view.channels);
}

}  // namespace

void check_image(const Image& image, const std::string& name, const Metadata& metadata) {
  if (image.height < 1 || image.width < 1) {
    invalid(name, ": expected a height and a width of at least 1 px, found ", image.height, "x", image.width);
  }
  if (!takes_channels(image.channels, metadata)) {
    invalid(name, ": expected ", expected_channels(metadata), " channels of uint8, found ", image.channels,
            "; convert the image");
  }
  const std::int64_t num_pixels = static_cast<std::int64_t>(image.height) * image.width;
  if (image.height > kMaxImageSize || image.width > kMaxImageSize || num_pixels > kMostImagePixels) {
    invalid(name, ": expected edges of up to ", kMaxImageSize, " px and up to ", kMostImagePixels, " pixels, found ",
            words(image), "; use a smaller image");
  }
  check_buffer(image, name);
}

Geometry geometry_of(const Image* images, std::size_t num_images, const Metadata& metadata) {
  Geometry geometry;
  for (std::size_t i = 0; i < num_images; ++i) {
    const Size original{images[i].height, images[i].width};
    geometry.originals.push_back(original);
    geometry.contents.push_back(network_size(original, metadata));
  }
  geometry.padded = padded_size(geometry.contents, metadata);
  return geometry;
}

std::vector<float> normalisation_tables(const Metadata& metadata) {
  std::vector<float> tables;
  for (std::size_t channel = 0; channel < metadata.mean.size(); ++channel) {
    const auto mean = static_cast<float>(metadata.mean[channel]);
    const auto std = static_cast<float>(metadata.std[channel]);
    for (int value = 0; value < kTableSize; ++value) tables.push_back((static_cast<float>(value) - mean) / std);
  }
  return tables;
}

void prepare(const Image& image, const Metadata& metadata, const std::vector<float>& tables, const Size& padded,
             float* out) {
  const std::int64_t row_bytes = static_cast<std::int64_t>(image.width) * image.channels;
  Canvas canvas(
      {image.pixels, image.height, image.width, image.channels, image.row_pitch == 0 ? row_bytes : image.row_pitch});
  if (metadata.loads_float) to_float(canvas);
  for (const auto& step : metadata.steps) step->apply(canvas);
  if (canvas.is_float()) {
    return write(canvas, metadata, padded, out, [&](int channel, float pixel) {
      const auto index = static_cast<std::size_t>(channel);
      return (pixel - static_cast<float>(metadata.mean[index])) / static_cast<float>(metadata.std[index]);
    });
  }
  write(canvas, metadata, padded, out, [&](int channel, auto pixel) {
    return tables[static_cast<std::size_t>(channel) * kTableSize + static_cast<std::size_t>(pixel)];
  });
}

}  // namespace maskrcnn
