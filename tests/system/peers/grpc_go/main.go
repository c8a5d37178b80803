// gRPC for Go, as a client of our server: tests/system/foreign_clients.py says what it has to do.
//
// Messages are bytes that the test has made, so that no generated code is needed. Only functions that grpc-go has had
// since 1.33, which Debian ships, are used.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	classify = "/lenserve.v1.Classifier/Classify"
	stream   = "/lenserve.v1.Classifier/ClassifyStream"
	watch    = "/grpc.health.v1.Health/Watch"
)

type raw struct{}

func (raw) Marshal(value interface{}) ([]byte, error) { return *value.(*[]byte), nil }
func (raw) Unmarshal(data []byte, value interface{}) error {
	*value.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (raw) Name() string { return "proto" }

type client struct {
	connection              *grpc.ClientConn
	request, answer         []byte
	streamRequest, streamed []byte
}

func (c *client) unary(ctx context.Context) string {
	var answer []byte
	err := c.connection.Invoke(ctx, classify, &c.request, &answer)
	if err == nil && !bytes.Equal(answer, c.answer) {
		return "a wrong answer"
	}
	return code(err)
}

// burst makes calls that all begin at once, on one connection.
func (c *client) burst(count int) map[string]int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	outcomes := make(chan string, count)
	for i := 0; i < count; i++ {
		go func() { outcomes <- c.unary(ctx) }()
	}
	counted := map[string]int{}
	for i := 0; i < count; i++ {
		counted[<-outcomes]++
	}
	return counted
}

func (c *client) stream(count int) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	both := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	call, err := c.connection.NewStream(ctx, both, stream)
	if err != nil {
		return nil, err
	}
	var sending sync.WaitGroup
	sending.Add(1)
	go func() {
		defer sending.Done()
		for i := 0; i < count; i++ {
			if call.SendMsg(&c.streamRequest) != nil {
				return
			}
		}
		call.CloseSend()
	}()
	counted := map[string]int{}
	for {
		var answer []byte
		if err := call.RecvMsg(&answer); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		if bytes.Equal(answer, c.streamed) {
			counted["OK"]++
		} else {
			counted["a wrong answer"]++
		}
	}
	sending.Wait()
	return counted, nil
}

// watch follows the server's health, which never ends, until something else ends it.
func (c *client) watch(ctx context.Context, afterFirst func()) string {
	call, err := c.connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, watch)
	if err != nil {
		return code(err)
	}
	request := []byte{}
	if err := call.SendMsg(&request); err != nil {
		return code(err)
	}
	call.CloseSend()
	var answer []byte
	if err := call.RecvMsg(&answer); err != nil {
		return code(err)
	}
	afterFirst()
	return code(call.RecvMsg(&answer))
}

func code(err error) string {
	if err == nil || status.Code(err) == codes.OK {
		return "OK"
	}
	return fmt.Sprintf("%d: %s", status.Code(err), status.Convert(err).Message())
}

func read(path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	return data
}

func main() {
	address, folder := os.Args[1], os.Args[2]
	count, err := strconv.Atoi(os.Args[3])
	if err != nil {
		panic(err)
	}
	connection, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		panic(err)
	}
	c := &client{connection, read(folder + "/request"), read(folder + "/answer"), read(folder + "/stream-request"), read(folder + "/stream-answer")}
	report := map[string]interface{}{"version": "grpc-go " + grpc.Version}
	report["unary"] = c.unary(context.Background())
	streamed, err := c.stream(count / 10)
	if err != nil {
		streamed = map[string]int{code(err): 1}
	}
	report["stream"] = streamed
	late, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	report["late"] = c.watch(late, func() {})
	cancel()
	cancelled, cancel := context.WithCancel(context.Background())
	report["cancelled"] = c.watch(cancelled, cancel)
	report["burst"] = c.burst(count)
	report["after"] = c.unary(context.Background())
	json.NewEncoder(os.Stdout).Encode(report)
}
