// Greedy longest match of byte strings: text to token ids. Torch-free.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace rwkv::cpu {

struct Token {
  std::string_view bytes;
  int32_t id;  // not negative
};

// A double array (Aoe 1989): the node reached from node n by byte b is cell base[n] + b, if that cell's parent is n. So
// a step is two loads from one small table and a comparison, whatever the number of children.
class ByteTrie {
 public:
  // Throws std::invalid_argument for an empty token, a token given twice, and unless each of the 256 single bytes is a
  // token: with them a match exists at every place of every text.
  explicit ByteTrie(std::vector<Token> tokens);

  // The ids of the longest tokens, left to right, that make up the text. Safe from any number of threads.
  std::vector<int32_t> encode(std::string_view text) const;

 private:
  struct Cell {
    int32_t parent = -1;  // -1: the cell is free
    int32_t base = 0;
    int32_t id = -1;  // of the token that ends here; -1: none does
  };

  // The sorted tokens [begin, end) share their first `depth` bytes, which lead to `node`.
  struct Subtree {
    int32_t node;
    const Token *begin, *end;
    size_t depth;
  };

  void place(Subtree subtree, std::vector<Subtree>& pending);

  std::vector<Cell> cells_;  // [0] is the root
  size_t first_free_ = 1;    // no cell below is free
};

}  // namespace rwkv::cpu
