// An auditor of the loader's, to whom libgomp.so.1 is on no machine, as in a slim container.
#include <cstdint>
#include <cstring>

extern "C" unsigned la_version(unsigned version) { return version; }
extern "C" char* la_objsearch(const char* name, std::uintptr_t*, unsigned) {
  return std::strstr(name, "libgomp.so.1") != nullptr ? nullptr : const_cast<char*>(name);
}
