#include "kernels/cpu/byte_trie.h"

#include <map>
#include <random>
#include <stdexcept>
#include <string>

#include "check.h"
#include "threads.h"

using rwkv::cpu::ByteTrie;
using rwkv::cpu::Token;

namespace {

using Vocabulary = std::map<std::string, int32_t>;

Vocabulary single_bytes() {
  Vocabulary vocabulary;
  for (int byte = 0; byte < 256; ++byte) vocabulary[std::string(1, static_cast<char>(byte))] = byte;
  return vocabulary;
}

std::vector<Token> tokens(const Vocabulary& vocabulary) {
  std::vector<Token> list;
  for (const auto& [bytes, id] : vocabulary) list.push_back({bytes, id});
  return list;
}

std::vector<int32_t> longest_match(const Vocabulary& vocabulary, const std::string& text) {
  std::vector<int32_t> ids;
  for (size_t start = 0; start < text.size();) {
    size_t length = text.size() - start;
    while (!vocabulary.count(text.substr(start, length))) --length;
    ids.push_back(vocabulary.at(text.substr(start, length)));
    start += length;
  }
  return ids;
}

bool refuses(const std::vector<Token>& list) {
  try {
    ByteTrie trie(list);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  std::mt19937 random(0);
  const std::string alphabet("ab \0\xff\xe7", 6);
  const auto words = [&](size_t longest) {
    std::string word(random() % (longest + 1), ' ');
    for (char& c : word) c = alphabet[random() % alphabet.size()];
    return word;
  };
  for (int round = 0; round < 50; ++round) {
    Vocabulary vocabulary = single_bytes();
    for (int id = 256; id < 456; ++id)
      if (const std::string word = words(7); !word.empty()) vocabulary.emplace(word, id);
    const ByteTrie trie(tokens(vocabulary));
    std::vector<std::string> texts(20);
    for (auto& text : texts) text = words(60);
    std::vector<std::vector<int32_t>> ids(texts.size());
    on_threads(most_threads())(ids.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ids[i] = trie.encode(texts[i]);
    });
    for (size_t i = 0; i < ids.size(); ++i) CHECK(ids[i] == longest_match(vocabulary, texts[i]), "round", round);
  }

  // Deep, and a token whose prefixes are none: the longest match ends where a token did, not where the walk stopped.
  Vocabulary vocabulary = single_bytes();
  const std::string deep(100000, 'x');
  vocabulary[deep] = 1000;
  const ByteTrie trie(tokens(vocabulary));
  CHECK(trie.encode(deep) == std::vector<int32_t>{1000});
  CHECK((trie.encode(deep + "xy") == std::vector<int32_t>{1000, 'x', 'y'}));
  CHECK(trie.encode("xxy") == (std::vector<int32_t>{'x', 'x', 'y'}));
  CHECK(trie.encode("").empty());

  CHECK(refuses({}));
  CHECK(refuses({{"a", 1}}));
  for (const char* missing : {"a", "z", "\xff"}) {
    vocabulary = single_bytes();
    vocabulary.erase(missing);
    vocabulary[std::string(missing) + "more"] = 256;  // the byte begins a token, and is none
    CHECK(refuses(tokens(vocabulary)), missing);
  }
  vocabulary = single_bytes();
  std::vector<Token> twice = tokens(vocabulary);
  twice.push_back({"a", 256});
  CHECK(refuses(twice));
  vocabulary[""] = 256;
  CHECK(refuses(tokens(vocabulary)));
  return failures();
}
