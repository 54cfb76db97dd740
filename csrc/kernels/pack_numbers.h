// Panels of numbers without codes: plain ones of 64, 32 and 16 bits, and 8-bit floats.
#pragma once
#include "kernels/kernels.h"

namespace strata {

// Of a panel of rows of k numbers. Those of 64 bits are kept as 32.
int64_t numbers_panel_bytes(Format f, int64_t k);
// Packs `lanes` rows of the file as one panel; `fast`, KernelTable::pack_panel's function, only
// for 8-bit floats.
void pack_numbers(Format f, const uint8_t* rows, int lanes, int64_t k, PackPanelFn fast,
                  uint8_t* panel);
// The numbers of one row of a panel.
void unpack_numbers(Format f, const uint8_t* panel, int64_t k, int lane, float* out);

}  // namespace strata
