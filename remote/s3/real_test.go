package s3_test

import (
	"bufio"
	"crypto/rand"
	"os"
	"os/exec"
	"strings"
	"testing"

	"imagefs/remote"
	"imagefs/remote/remotetest"
	"imagefs/remote/s3"
)

// TestStoreOverARealServer runs the suite over the bucket of the URL in
// IMAGEFS_TEST_S3, such as s3://bucket/folder, at the server and with the
// credentials of the AWS_ variables, where it writes below that folder and does
// not clean up; or else over the program in IMAGEFS_S3SERVER, bin/s3server.
func TestStoreOverARealServer(t *testing.T) {
	url := os.Getenv("IMAGEFS_TEST_S3")
	if url == "" {
		url = startServer(t)
	}
	bucket, prefix, err := s3.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	remotetest.Run(t, func(t *testing.T) remote.Store {
		return open(t, s3.Config{Bucket: bucket, Prefix: prefix + "/" + rand.Text()})
	})
}

// startServer runs test/s3server until the test ends, points the AWS_ variables
// at it, and returns the URL of a folder in it. Without the program the test is
// skipped, or fails where tools were demanded.
func startServer(t *testing.T) string {
	t.Helper()
	path := os.Getenv("IMAGEFS_S3SERVER")
	if path == "" && (os.Getenv("CI") != "" || os.Getenv("IMAGEFS_REQUIRE_TOOLS") != "") {
		t.Fatal("neither IMAGEFS_TEST_S3 nor IMAGEFS_S3SERVER is set: run make test")
	} else if path == "" {
		t.Skip("neither IMAGEFS_TEST_S3 nor IMAGEFS_S3SERVER is set: make s3server builds one")
	}
	var log strings.Builder
	cmd := exec.Command(path, "-dir", t.TempDir(), "-bucket", "images", "-access", "testkey", "-secret", "testsecret")
	cmd.Stderr = &log
	stdin, err := cmd.StdinPipe() // it ends when this closes, be it by a kill of the test
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", path, err, &log)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("%s began with %q (%v), want its address", path, line, err)
	}
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://"+addr)
	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	t.Setenv("AWS_REGION", "us-east-1")
	return "s3://images/suite"
}
