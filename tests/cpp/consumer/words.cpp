// Prints errors with large numbers in them, in a process that writes numbers as in German: words MODEL.
#include <maskrcnn/detector.h>

#include <cstdio>
#include <locale>
#include <string>

namespace {

struct German : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

}  // namespace

int main(int count, char** texts) {
  if (count != 2) return 1;
  std::locale::global(std::locale(std::locale::classic(), new German));
  maskrcnn::Options options;
  options.batch_size = 12345678;
  const auto refused = maskrcnn::Detector::open(texts[1], options);
  options.batch_size = 0;
  const auto opened = maskrcnn::Detector::open(texts[1], options);
  if (refused || !opened) return 2;
  const std::uint8_t pixel = 0;
  maskrcnn::Image image;
  image.pixels = &pixel;
  image.height = 2000000;
  image.width = 1000000;
  const auto found = opened.value().detect(&image, 1);
  if (found) return 3;
  std::printf("%s\n%s\n", refused.error().message.c_str(), found.error().message.c_str());
  return 0;
}
