// The operators of the CPU library, in one translation unit: reading torch's headers takes six seconds, ten times what
// the rest of a binding does.
#include "bindings/draw_tokens_cpu.h"
#include "bindings/linear_cpu.h"
#include "bindings/mixing4_steps_cpu.h"
#include "bindings/mixing7_steps_cpu.h"
#include "bindings/philox_cpu.h"
#include "bindings/prefill_cpu.h"
#include "bindings/prepared_layers_cpu.h"
#include "bindings/ways_cpu.h"
#include "bindings/wkv4_cpu.h"
#include "bindings/wkv7_cpu.h"
#include "bindings/wkv7_prompts_cpu.h"
