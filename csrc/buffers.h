// Memory for large results. The system zeroes fresh pages one at a time, which costs more than
// filling them; so buffers that were given back are kept and used again for results of their size.
#pragma once

#include <cstddef>

namespace tfmeta {

// Uninitialised memory on a 64-byte boundary. Throws std::bad_alloc.
void* TakeBuffer(std::size_t bytes);

void GiveBuffer(void* data, std::size_t bytes);

}  // namespace tfmeta
