// What the tests of the core are written with. A test is a function that `main` calls; what it
// CHECKs counts, and is shown where it fails.
#pragma once

#include <string>

namespace schuss {

// Counts a failure, and shows it, unless `holds`. Any thread may ask.
bool check(bool holds, const char* file, int line, const std::string& what);

#define CHECK(condition) ::schuss::check((condition), __FILE__, __LINE__, #condition)
#define CHECK_SAYING(condition, what) ::schuss::check((condition), __FILE__, __LINE__, (what))

void test_crew();
void test_dispatch();
void test_partition();

// Takes all steps of golden.txt with the set in use, and compares.
void test_golden(const std::string& file);

// The file as the set in use would have it.
std::string golden_text(const std::string& file);

}  // namespace schuss
