// While it lives, faults of this OS thread's worker are caught.
#pragma once
#include <vector>

namespace simt {

class FaultGuard {
  public:
    FaultGuard();
    ~FaultGuard();
    FaultGuard(const FaultGuard&) = delete;
    FaultGuard& operator=(const FaultGuard&) = delete;

  private:
    std::vector<unsigned char> memory;
};

}  // namespace simt
