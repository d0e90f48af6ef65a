#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>

#include "errors.h"

namespace maskrcnn {
namespace {

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : number_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

[[noreturn]] void cannot_read(const std::string& place = "") {
  failed(place, "expected to read it, found: ", std::strerror(errno), "; check the path, and who may read it");
}

}  // namespace

bool is_file(const std::string& path) {
  struct stat found {};
  return ::stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode);
}

void check_model_file(const std::string& path) {
  if (is_file(path)) return;
  struct stat found {};
  const bool is_there = ::stat(path.c_str(), &found) == 0;
  if (!is_there && errno != ENOENT && errno != ENOTDIR && errno != ELOOP) cannot_read("model " + path + ": ");
  not_found("model ", path, ": expected a file, found ",
            !is_there                ? "nothing"
            : S_ISDIR(found.st_mode) ? "a folder"
                                     : "no regular file",
            "; make it with `python -m export.maskrcnn` or `python -m export.graft`");
}

std::string bytes_of(const std::string& path, std::int64_t most) {
  const Descriptor file(path);
  struct stat found {};
  if (file.number() < 0 || ::fstat(file.number(), &found) != 0) cannot_read();
  if (!S_ISREG(found.st_mode)) invalid("expected a regular file, found something else; name a file");
  if (found.st_size > most) invalid("expected a file of up to ", most, " bytes, found ", found.st_size);
  std::string data(static_cast<std::size_t>(found.st_size), '\0');
  std::size_t filled = 0;
  while (filled < data.size()) {
    const ssize_t count = ::read(file.number(), data.data() + filled, data.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) cannot_read();
    if (count == 0) break;  // it has become shorter
    filled += static_cast<std::size_t>(count);
  }
  data.resize(filled);
  return data;
}

std::string suffix_of(const std::string& path) {
  const std::size_t dot = path.find_last_of("./");
  if (dot == std::string::npos || path[dot] == '/') return "";
  std::string suffix = path.substr(dot);
  std::transform(suffix.begin(), suffix.end(), suffix.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return suffix;
}

}  // namespace maskrcnn
