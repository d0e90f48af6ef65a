// Files that the examples write.
#pragma once

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

// Makes the file where there is none; what an earlier run wrote stays until there is something else.
inline bool can_write(const std::string& path) { return static_cast<bool>(std::ofstream(path, std::ios::app)); }

inline std::string not_written(const std::string& path) {
  return path + ": expected a file that can be written, found: " + std::strerror(errno) +
         "; name another, in a folder that is there";
}
