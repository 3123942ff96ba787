#include "kernels/cpu/byte_trie.h"

#include <algorithm>
#include <span>
#include <stdexcept>
#include <string>

namespace rwkv::cpu {
namespace {

constexpr size_t kBytes = 256;

uint8_t byte_at(std::string_view bytes, size_t i) { return static_cast<uint8_t>(bytes[i]); }

}  // namespace

ByteTrie::ByteTrie(std::vector<Token> tokens) {
  std::ranges::sort(tokens, {}, &Token::bytes);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].bytes.empty())
      throw std::invalid_argument("byte trie: token " + std::to_string(tokens[i].id) + " is empty");
    if (i > 0 && tokens[i - 1].bytes == tokens[i].bytes)
      throw std::invalid_argument("byte trie: token " + std::to_string(tokens[i].id) + " is given twice");
  }
  cells_.resize(kBytes);
  cells_[0].parent = 0;
  std::vector<Subtree> pending = {{0, tokens.data(), tokens.data() + tokens.size(), 0}};
  for (size_t i = 0; i < pending.size(); ++i) place(pending[i], pending);
  for (size_t byte = 0; byte < kBytes; ++byte) {
    const Cell& cell = cells_[cells_[0].base + byte];
    if (cell.parent != 0 || cell.id < 0)
      throw std::invalid_argument("byte trie: no token is the single byte " + std::to_string(byte));
  }
}

// Assigns the node its id and its children their cells; appends the subtree of each child to `pending`.
void ByteTrie::place(Subtree subtree, std::vector<Subtree>& pending) {
  const size_t depth = subtree.depth;
  const Token *begin = subtree.begin, *const end = subtree.end;
  if (begin != end && begin->bytes.size() == depth) cells_[subtree.node].id = (begin++)->id;
  if (begin == end) return;

  const size_t first_child = pending.size();
  const auto byte_of = [depth](const Token* token) { return byte_at(token->bytes, depth); };
  for (const Token* token = begin; token != end; ++token) {
    if (token == begin || byte_of(token) != byte_of(token - 1)) pending.push_back({0, token, token, depth + 1});
    pending.back().end = token + 1;
  }
  const auto children = std::span(pending).subspan(first_child);

  // The first base at which the cells of all children are free. Cells exist for every byte value above a base, so
  // `encode` never reads beyond the last cell.
  while (first_free_ < cells_.size() && cells_[first_free_].parent >= 0) ++first_free_;
  size_t base = std::max(first_free_, 1 + size_t{byte_of(begin)}) - byte_of(begin);
  for (;; ++base) {
    if (cells_.size() < base + kBytes) cells_.resize(2 * (base + kBytes));
    const auto is_free = [&](const Subtree& child) { return cells_[base + byte_of(child.begin)].parent < 0; };
    if (std::ranges::all_of(children, is_free)) break;
  }
  cells_[subtree.node].base = static_cast<int32_t>(base);
  for (Subtree& child : children) {
    child.node = static_cast<int32_t>(base + byte_of(child.begin));
    cells_[child.node].parent = subtree.node;
  }
}

std::vector<int32_t> ByteTrie::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  const Cell* const cells = cells_.data();
  for (size_t start = 0; start < text.size();) {
    size_t end = start;
    int32_t id = -1;  // replaced at the first byte at the latest, because every byte is a token
    for (size_t i = start, node = 0; i < text.size();) {
      const size_t next = cells[node].base + byte_at(text, i);
      if (cells[next].parent != static_cast<int32_t>(node)) break;
      node = next;
      ++i;
      if (cells[node].id >= 0) {
        id = cells[node].id;
        end = i;
      }
    }
    ids.push_back(id);
    start = end;
  }
  return ids;
}

}  // namespace rwkv::cpu
