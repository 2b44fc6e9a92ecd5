package test

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An S3 is a running S3 server with one bucket.
type S3 struct {
	Endpoint string // URL
	Bucket   string
	Env      []string // credentials, for the environment of a client

	stdin   io.WriteCloser
	answers chan string
}

// StartS3 runs a real S3 server until the test ends. Further flags of
// test/s3server may follow.
func StartS3(t testing.TB, flags ...string) *S3 {
	t.Helper()
	const bucket, key, secret = "images", "testkey", "testsecret"
	log := &logBuffer{}
	args := append([]string{"-dir", t.TempDir(), "-bucket", bucket, "-access", key, "-secret", secret}, flags...)
	cmd := exec.Command(program(t, buildS3server), args...)
	cmd.Stderr = log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := start(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s := &S3{
		Bucket: bucket, stdin: stdin, answers: make(chan string, 16),
		Env: []string{"AWS_ACCESS_KEY_ID=" + key, "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_REGION=us-east-1"},
	}
	go func() {
		defer close(s.answers)
		var line []byte
		for b := make([]byte, 1); ; {
			if _, err := stdout.Read(b); err != nil {
				return
			}
			if b[0] != '\n' {
				line = append(line, b[0])
				continue
			}
			s.answers <- string(line)
			line = nil
		}
	}()
	t.Cleanup(func() {
		stdin.Close() // it ends by itself
		done := make(chan struct{})
		go func() {
			for range s.answers { // until the pipe is closed
			}
			_ = cmd.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-done
			t.Errorf("the S3 server did not end\n%s", log)
		}
	})
	addr, ok := strings.CutPrefix(s.answer(t), "listening on ")
	if !ok {
		t.Fatalf("the S3 server did not start\n%s", log)
	}
	s.Endpoint = "http://" + addr
	return s
}

// URL is the name of the bucket as a store.
func (s *S3) URL() string { return "s3://" + s.Bucket }

// Flags point a client at the server.
func (s *S3) Flags() []string { return []string{"--endpoint", s.Endpoint, "--path-style", "path"} }

// Put stores a local file as an object.
func (s *S3) Put(t testing.TB, key, file string) {
	t.Helper()
	abs, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	s.Command(t, "put", s.Bucket, key, abs)
}

// Command runs a command of test/s3server.
func (s *S3) Command(t testing.TB, fields ...string) {
	t.Helper()
	if _, err := fmt.Fprintln(s.stdin, strings.Join(fields, "\t")); err != nil {
		t.Fatal(err)
	}
	if a := s.answer(t); a != "ok" {
		t.Fatalf("s3server %s: %s", strings.Join(fields, " "), a)
	}
}

func (s *S3) answer(t testing.TB) string {
	t.Helper()
	select {
	case a := <-s.answers:
		return a
	case <-time.After(patience):
		t.Fatal("the S3 server does not answer")
		return ""
	}
}
