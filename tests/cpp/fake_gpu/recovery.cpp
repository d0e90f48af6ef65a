// What a detector finds after memory ran out while it made room for run lengths.
//
//   recovery ENGINE device|pinned       prints an image's run lengths, or an error, a line
#include <maskrcnn/detector.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "cudart.h"

namespace {

constexpr int kHeight = 64, kWidth = 96;

void print(const maskrcnn::Detector& detector, std::uint8_t value) {
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(kHeight) * kWidth * 3, 7);
  pixels[0] = value;
  const maskrcnn::Image image{pixels.data(), kHeight, kWidth};
  const auto found = detector.detect(&image, 1);
  if (!found) return static_cast<void>(std::printf("error: %s\n", found.error().message.c_str()));
  std::string line;
  for (std::size_t i = 0; i < found.value()[0].size(); ++i) {
    const auto rle = found.value()[0].rle(i);
    line += (i == 0 ? "" : " ") + (rle ? rle.value().counts : rle.error().message);
  }
  std::printf("%s\n", line.c_str());
}

}  // namespace

int main(int count, char** texts) {
  if (count != 3) return 2;
  const auto opened = maskrcnn::Detector::open(texts[1]);
  if (!opened) return std::fprintf(stderr, "%s\n", opened.error().message.c_str()), 2;
  // The strings of 255 outgrow what there is room for at first.
  print(opened.value(), 3);
  fake_cuda_refuse(std::string(texts[2]) == "pinned");
  for (const int value : {255, 3, 255, 7, 255}) print(opened.value(), static_cast<std::uint8_t>(value));
  return 0;
}
