// Converts text to token ids by greedy longest match. Torch-free.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace rwkv::cpu {

struct Token {
  std::string_view bytes;
  int32_t id;  // not negative
};

// A double-array trie (Aoe 1989): the child of node n for byte b is cell base[n] + b, if that cell's parent is n. A
// step takes two loads from one small table and a comparison, whatever the number of children.
class ByteTrie {
 public:
  // Throws std::invalid_argument if a token is empty or is given twice, or if one of the 256 single bytes is not a
  // token; with them every text can be encoded.
  explicit ByteTrie(std::vector<Token> tokens);

  // The ids of the text's tokens: from left to right, always the longest that matches. Thread-safe.
  std::vector<int32_t> encode(std::string_view text) const;

 private:
  struct Cell {
    int32_t parent = -1;  // -1: the cell is free
    int32_t base = 0;
    int32_t id = -1;  // of the token that ends here; -1 if none does
  };

  // The sorted tokens [begin, end) share their first `depth` bytes, which lead to `node`.
  struct Subtree {
    int32_t node;
    const Token *begin, *end;
    size_t depth;
  };

  void place(Subtree subtree, std::vector<Subtree>& pending);

  std::vector<Cell> cells_;  // [0] is the root
  size_t first_free_ = 1;    // no cell before this one is free
};

}  // namespace rwkv::cpu
