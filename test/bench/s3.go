package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	accessKey, secretKey = "benchkey", "benchsecret"
	bucket               = "bench"
	// far is the time added to each request of a store that is not near.
	far = 20 * time.Millisecond
)

// s3peer is a real S3 server with a bucket. It is no part of any rival.
type s3peer struct {
	endpoint string
	in       io.WriteCloser
	answers  *bufio.Scanner
	cmd      *exec.Cmd
}

// startS3 starts a server that answers each request later than it could. All of
// a run serve the same objects.
func (b *bench) startS3(latency time.Duration) (*s3peer, error) {
	cmd := exec.Command(b.s3server, "-dir", b.path("s3"), "-access", accessKey, "-secret", secretKey, "-bucket", bucket,
		"-latency", latency.String(), "-rate", strconv.FormatInt(b.rate, 10))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = apart // it ends when its standard input does
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &s3peer{in: in, answers: bufio.NewScanner(out), cmd: cmd}
	line, err := s.answer()
	host, ok := strings.CutPrefix(line, "listening on ")
	if err != nil || !ok {
		s.stop()
		return nil, fmt.Errorf("the S3 server did not start: %q, %v", line, err)
	}
	s.endpoint = "http://" + host
	for k, v := range map[string]string{"AWS_ACCESS_KEY_ID": accessKey, "AWS_SECRET_ACCESS_KEY": secretKey, "AWS_REGION": "us-east-1"} {
		if err := os.Setenv(k, v); err != nil {
			s.stop()
			return nil, err
		}
	}
	return s, nil
}

func (s *s3peer) stop() {
	_ = s.in.Close()
	_ = s.cmd.Wait()
}

func (s *s3peer) answer() (string, error) {
	if !s.answers.Scan() {
		return "", errors.Join(errors.New("the S3 server ended"), s.answers.Err())
	}
	return s.answers.Text(), nil
}

// command carries out a command of test/s3server and returns what it answers.
func (s *s3peer) command(fields ...string) (string, error) {
	if _, err := fmt.Fprintln(s.in, strings.Join(fields, "\t")); err != nil {
		return "", err
	}
	a, err := s.answer()
	rest, ok := strings.CutPrefix(a, "ok")
	if err == nil && !ok {
		err = fmt.Errorf("s3server %s: %s", fields[0], a)
	}
	return rest, err
}

// sent is how many bytes of objects the server has sent.
func (s *s3peer) sent() (n int64, err error) {
	a, err := s.command("sent")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(a, &n)
	return n, err
}

// put stores files of the store folder as objects, unless a server of this run
// has them already.
func (b *bench) put(s *s3peer, files ...string) error {
	for _, file := range files {
		if _, err := os.Stat(b.path("s3", bucket, file)); err == nil {
			continue
		}
		if _, err := s.command("put", bucket, file, b.path("store", file)); err != nil {
			return err
		}
	}
	return nil
}

func newClient(endpoint string) (*minio.Client, error) {
	host := strings.TrimPrefix(endpoint, "http://")
	return minio.New(host, &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, ""), Region: "us-east-1"})
}

// children are what this program does in a process of its own, by its first
// argument, so that its memory can be told from that of the benchmark.
var children = map[string]func(args []string) error{
	"loopback": serveLoopback,
	"get":      getObject,
	"get-8":    getParallel,
	"upload":   putObject,
}

// child runs this program to do something else.
func (t *turn) child(args ...string) error { return t.run("/proc/self/exe", args...) }

// getObject downloads an object with one request, as clients do.
func getObject(args []string) error {
	c, err := newClient(args[0])
	if err != nil {
		return err
	}
	o, err := c.GetObject(context.Background(), bucket, args[1], minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	f, err := os.Create(args[2])
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{o}, make([]byte, 1<<20))
	return errors.Join(err, f.Close())
}

const (
	parallelParts = 8
	parallelPart  = 8 << 20
)

// getParallel downloads an object with several ranged requests at a time: what
// the line gives.
func getParallel(args []string) error {
	c, err := newClient(args[0])
	if err != nil {
		return err
	}
	ctx := context.Background()
	info, err := c.StatObject(ctx, bucket, args[1], minio.StatObjectOptions{})
	if err != nil {
		return err
	}
	f, err := os.Create(args[2])
	if err != nil {
		return err
	}
	errs := make([]error, parallelParts)
	var wg sync.WaitGroup
	for i := range parallelParts {
		wg.Go(func() {
			buf := make([]byte, 1<<20)
			for off := int64(i) * parallelPart; off < info.Size && errs[i] == nil; off += parallelParts * parallelPart {
				errs[i] = getRange(ctx, c, args[1], f, off, min(parallelPart, info.Size-off), buf)
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, f.Close())...)
}

func getRange(ctx context.Context, c *minio.Client, key string, f *os.File, off, n int64, buf []byte) error {
	var o minio.GetObjectOptions
	if err := o.SetRange(off, off+n-1); err != nil {
		return err
	}
	body, _, _, err := (&minio.Core{Client: c}).GetObject(ctx, bucket, key, o)
	if err != nil {
		return err
	}
	defer body.Close()
	got, err := io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(f, off)}, struct{ io.Reader }{body}, buf)
	if err == nil && got != n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func putObject(args []string) error {
	c, err := newClient(args[0])
	if err != nil {
		return err
	}
	_, err = c.FPutObject(context.Background(), bucket, args[1], args[2], minio.PutObjectOptions{DisableContentSha256: true})
	return err
}
