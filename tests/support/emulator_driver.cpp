// driver REQUEST ANSWER ORDER COPIES SEED TIME_LIMIT_S: runs one op on the emulator.
//
// A file is a list of values: u32 count, then for each: name, type (each u32 length and bytes),
// u32 rank, i64 sizes, bytes. The value "op" says which op; a value of rank 0 is a scalar.
#include "emulator_driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utility>

#include "../../csrc/emulator/fault.h"
#include "../../csrc/emulator/grid.h"

namespace servewright::driver {
namespace {

using emulator::fault;

std::map<std::string, Op>& ops() {
  static std::map<std::string, Op> all;
  return all;
}

class File {
 public:
  File(const char* path, const char* mode)
      : file_(fopen(path, mode)) {
    if (!file_) fault("cannot open %s", path);
  }
  ~File() { fclose(file_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  template <class T>
  T number() {
    T value;
    read(&value, sizeof value);
    return value;
  }
  std::string text(size_t size) {
    std::string value(size, '\0');
    read(value.data(), size);
    return value;
  }
  std::string text() { return text(number<uint32_t>()); }
  template <class T>
  void put(T value) {
    put(&value, sizeof value);
  }
  void put(const std::string& value) {
    put(static_cast<uint32_t>(value.size()));
    put(value.data(), value.size());
  }
  void put(const void* from, size_t size) {
    if (size && fwrite(from, size, 1, file_) != 1) fault("cannot write the answer");
  }

 private:
  void read(void* to, size_t size) {
    if (size && fread(to, size, 1, file_) != 1) fault("the request is cut short");
  }
  FILE* file_;
};

size_t size_of(const std::string& type) {
  const size_t digits = type.find_first_of("0123456789");
  if (digits == std::string::npos) fault("a value of type %s", type.c_str());
  return strtoul(type.c_str() + digits, nullptr, 10) / 8;
}

size_t count_of(const Shape& shape) {
  size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

}  // namespace

bool add_op(const char* name, Op op) { return ops().emplace(name, op).second; }

Request::Request(const char* path) {
  File file(path, "rb");
  for (uint32_t left = file.number<uint32_t>(); left; --left) {
    std::string name = file.text();
    Value value;
    value.type = file.text();
    value.shape.resize(file.number<uint32_t>());
    for (int64_t& size : value.shape) size = file.number<int64_t>();
    value.bytes = file.text(count_of(value.shape) * size_of(value.type));
    if (name == "op")
      op_ = value.bytes;
    else
      values_.emplace(std::move(name), std::move(value));
  }
}

const Request::Value& Request::given(const std::string& name) const {
  const auto found = values_.find(name);
  if (found == values_.end()) fault("op %s was given no %s", op_.c_str(), name.c_str());
  return found->second;
}

int64_t Request::integer(const std::string& name) const {
  const Value& value = given(name);
  if (value.type != "int64" || !value.shape.empty()) fault("%s is no integer", name.c_str());
  int64_t answer;
  memcpy(&answer, value.bytes.data(), sizeof answer);
  return answer;
}

double Request::number(const std::string& name) const {
  const Value& value = given(name);
  if (value.type != "float64" || !value.shape.empty()) fault("%s is no number", name.c_str());
  double answer;
  memcpy(&answer, value.bytes.data(), sizeof answer);
  return answer;
}

char* Request::place(const std::string& name, const char* type, emulator::Use use) {
  Value& value = const_cast<Value&>(given(name));
  if (value.type != type) fault("%s: want %s, came %s", name.c_str(), type, value.type.c_str());
  if (value.array) fault("%s is asked for twice", name.c_str());
  value.array = std::make_unique<emulator::Array>(name, value.bytes.size(), use);
  memcpy(value.array->data(), value.bytes.data(), value.bytes.size());
  if (use == emulator::Use::READ) value.array->protect();
  value.answered = use == emulator::Use::WRITE;
  return value.array->data();
}

char* Request::create(const std::string& name, const char* type, size_t size, const Shape& shape,
                      bool answered) {
  Value value;
  value.type = type;
  value.shape = shape;
  value.array =
      std::make_unique<emulator::Array>(name, count_of(shape) * size, emulator::Use::WRITE);
  value.answered = answered;
  const auto [at, added] = values_.emplace(name, std::move(value));
  if (!added) fault("there are two arrays %s", name.c_str());
  return at->second.array->data();
}

void Request::check(int status) const {
  emulator::synchronise();
  if (status) fault("op %s: the launcher returned error %d", op_.c_str(), status);
}

void Request::answer(const char* path) const {
  File file(path, "wb");
  uint32_t count = 0;
  for (const auto& [name, value] : values_) count += value.answered;
  file.put(count);
  for (const auto& [name, value] : values_) {
    if (!value.answered) continue;
    if (const std::string damage = value.array->damage(); !damage.empty())
      fault("%s", damage.c_str());
    file.put(name);
    file.put(value.type);
    file.put(static_cast<uint32_t>(value.shape.size()));
    for (const int64_t size : value.shape) file.put(size);
    file.put(value.array->data(), value.array->bytes());
  }
}

namespace {

int run(char** arguments) {
  const std::string order = arguments[3], copies = arguments[4];
  emulator::options.order = order == "up"     ? emulator::Order::UP
                            : order == "down" ? emulator::Order::DOWN
                                              : emulator::Order::RANDOM;
  emulator::options.copies = copies == "lazy" ? emulator::Copies::LAZY : emulator::Copies::EAGER;
  emulator::options.seed = static_cast<unsigned>(strtoul(arguments[5], nullptr, 10));
  emulator::catch_faults(static_cast<unsigned>(strtoul(arguments[6], nullptr, 10)));
  Request request(arguments[1]);
  const auto found = ops().find(request.op());
  if (found == ops().end()) fault("there is no op %s", request.op().c_str());
  found->second(request);
  request.answer(arguments[2]);
  return 0;
}

}  // namespace
}  // namespace servewright::driver

int main(int count, char** arguments) {
  if (count != 7) {
    fprintf(stderr, "driver REQUEST ANSWER ORDER COPIES SEED TIME_LIMIT_S\n");
    return 2;
  }
  return servewright::driver::run(arguments);
}
