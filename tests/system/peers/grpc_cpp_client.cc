// gRPC for C++, as a client of our server: tests/system/foreign_clients.py says what it has to do.
//
// Messages are bytes that the test has made, so that no generated code is needed.
#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

using grpc::ByteBuffer;
using grpc::ClientContext;
using grpc::CompletionQueue;
using grpc::Status;
using Counts = std::map<std::string, int>;

const std::string kClassify = "/lenserve.v1.Classifier/Classify";
const std::string kStream = "/lenserve.v1.Classifier/ClassifyStream";
const std::string kWatch = "/grpc.health.v1.Health/Watch";

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

ByteBuffer ToBuffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return ByteBuffer(&slice, 1);
}

std::string ToString(const ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  buffer.Dump(&slices);
  std::string bytes;
  for (const auto& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

std::string Code(const Status& status) {
  return status.ok() ? "OK" : std::to_string(status.error_code()) + ": " + status.error_message();
}

void SetTimeout(ClientContext* context, int milliseconds) {
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(milliseconds));
}

// Waits for the operation of a call that was started last, and returns whether it succeeded.
bool Next(CompletionQueue* queue) {
  void* tag;
  bool ok = false;
  queue->Next(&tag, &ok);
  return ok;
}

class Client {
 public:
  Client(const std::string& address, const std::string& folder)
      : stub_(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())),
        request_(Read(folder + "/request")),
        answer_(Read(folder + "/answer")),
        stream_request_(Read(folder + "/stream-request")),
        streamed_(Read(folder + "/stream-answer")) {}

  // Makes calls that all begin at once, on one connection.
  Counts Unary(int count) {
    struct Call {
      ClientContext context;
      ByteBuffer answer;
      Status status;
      std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;
    };
    CompletionQueue queue;
    std::vector<Call> calls(count);
    for (auto& call : calls) {
      SetTimeout(&call.context, 60000);
      call.reader = stub_.PrepareUnaryCall(&call.context, kClassify, ToBuffer(request_), &queue);
      call.reader->StartCall();
      call.reader->Finish(&call.answer, &call.status, &call);
    }
    for (int i = 0; i < count; i++) Next(&queue);
    Counts counts;
    for (auto& call : calls) {
      bool is_wrong = call.status.ok() && ToString(call.answer) != answer_;
      counts[is_wrong ? "a wrong answer" : Code(call.status)]++;
    }
    return counts;
  }

  Counts Stream(int count) {
    ClientContext context;
    CompletionQueue queue;
    Counts counts;
    SetTimeout(&context, 60000);
    auto call = stub_.PrepareCall(&context, kStream, &queue);
    call->StartCall(this);
    Next(&queue);
    // The window allows so many requests without an answer.
    for (int i = 0; i < count; i++) {
      ByteBuffer answer;
      call->Write(ToBuffer(stream_request_), this);
      Next(&queue);
      call->Read(&answer, this);
      if (!Next(&queue)) break;
      counts[ToString(answer) == streamed_ ? "OK" : "a wrong answer"]++;
    }
    call->WritesDone(this);
    Next(&queue);
    Status status;
    call->Finish(&status, this);
    Next(&queue);
    if (!status.ok()) counts[Code(status)]++;
    return counts;
  }

  // Follows the server's health, which never ends, until something else ends it.
  std::string Watch(int milliseconds, const std::function<void(ClientContext*)>& after_first) {
    ClientContext context;
    CompletionQueue queue;
    ByteBuffer answer;
    SetTimeout(&context, milliseconds);
    auto call = stub_.PrepareCall(&context, kWatch, &queue);
    call->StartCall(this);
    Next(&queue);
    call->WriteLast(ToBuffer(""), grpc::WriteOptions(), this);
    Next(&queue);
    call->Read(&answer, this);
    if (Next(&queue)) {
      after_first(&context);
      call->Read(&answer, this);
      Next(&queue);
    }
    Status status;
    call->Finish(&status, this);
    Next(&queue);
    return Code(status);
  }

 private:
  grpc::GenericStub stub_;
  std::string request_, answer_, stream_request_, streamed_;
};

std::string Json(const Counts& counts) {
  std::string text = "{";
  for (const auto& [name, count] : counts) {
    if (text.size() > 1) text += ", ";
    text += "\"" + name + "\": " + std::to_string(count);
  }
  return text + "}";
}

int main(int, char** arguments) {
  Client client(arguments[1], arguments[2]);
  int count = std::stoi(arguments[3]);
  std::cout << "{\"version\": \"gRPC for C++ " << grpc::Version() << "\"";
  std::cout << ", \"unary\": \"" << client.Unary(1).begin()->first << "\"";
  std::cout << ", \"stream\": " << Json(client.Stream(count / 10));
  std::cout << ", \"late\": \"" << client.Watch(300, [](ClientContext*) {}) << "\"";
  auto cancel = [](ClientContext* context) { context->TryCancel(); };
  std::cout << ", \"cancelled\": \"" << client.Watch(60000, cancel) << "\"";
  std::cout << ", \"burst\": " << Json(client.Unary(count));
  std::cout << ", \"after\": \"" << client.Unary(1).begin()->first << "\"}" << std::endl;
}
