// Writes the tiny checkpoint of the tests to a new directory, for tests that are scripts.

#include <iostream>

#include "tests/support/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: write_tiny_checkpoint DIRECTORY\n";
    return 2;
  }
  const absl::Status status = quern::WriteTinyCheckpoint(argv[1]);
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}
