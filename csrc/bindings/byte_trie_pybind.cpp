// ByteTrie for Python: convert the arguments, release the interpreter's lock, call. This file makes the library of the
// operators a Python module too, which `cpu_kernels.python_module` imports. It needs pybind11's headers, not torch's.
#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "kernels/cpu/byte_trie.h"

namespace py = pybind11;
using rwkv::cpu::ByteTrie;
using rwkv::cpu::Token;

namespace {

// tokens: {id: bytes}
ByteTrie make(const py::dict& tokens) {
  std::vector<Token> list;
  list.reserve(tokens.size());
  for (const auto& [id, bytes] : tokens) list.push_back({bytes.cast<std::string_view>(), id.cast<int32_t>()});
  return ByteTrie(std::move(list));
}

// The ids as int32, in the machine's byte order.
py::bytes encode(const ByteTrie& trie, const py::bytes& text) {
  const auto view = static_cast<std::string_view>(text);
  std::vector<int32_t> ids;
  {
    const py::gil_scoped_release other_threads_run;
    ids = trie.encode(view);
  }
  return {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)};
}

}  // namespace

PYBIND11_MODULE(byte_trie, module) {
  py::class_<ByteTrie>(module, "ByteTrie", py::module_local())
      .def(py::init(&make), py::arg("tokens"))
      .def("encode", &encode, py::arg("text"));
}
