package main

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3response"
)

// A line is a store at the end of a line: it answers later than it could, and
// counts what it sends. Nothing stands between it and its clients: a proxy
// would cost the time that it is to measure.
type line struct {
	*posix.Posix
	latency time.Duration // before a request is answered
	rate    int64         // greatest bytes per second of one answer; 0 is no limit

	sent atomic.Int64 // bytes of objects
}

// GetBucketAcl is what the gateway asks first and once for every request that
// names a bucket, whatever comes then.
func (l *line) GetBucketAcl(ctx context.Context, in *s3.GetBucketAclInput) ([]byte, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	return l.Posix.GetBucketAcl(ctx, in)
}

func (l *line) ListBuckets(ctx context.Context, in s3response.ListBucketsInput) (s3response.ListAllMyBucketsResult, error) {
	if err := l.wait(ctx); err != nil {
		return s3response.ListAllMyBucketsResult{}, err
	}
	return l.Posix.ListBuckets(ctx, in)
}

func (l *line) GetObject(ctx context.Context, in *s3.GetObjectInput) (*s3.GetObjectOutput, error) {
	out, err := l.Posix.GetObject(ctx, in)
	if err == nil && out.Body != nil {
		out.Body = &answer{ReadCloser: out.Body, line: l}
	}
	return out, err
}

func (l *line) wait(ctx context.Context) error {
	if l.latency <= 0 {
		return nil
	}
	t := time.NewTimer(l.latency)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// An answer is the body of one. A client has one under way on a connection, so
// its rate is that of the connection.
type answer struct {
	io.ReadCloser
	line  *line
	begun time.Time
	sent  int64
}

func (a *answer) Read(p []byte) (int, error) {
	if a.line.rate > 0 {
		if a.begun.IsZero() {
			a.begun = time.Now()
		}
		// What was sent before this read has taken its time.
		due := time.Duration(float64(a.sent) / float64(a.line.rate) * float64(time.Second))
		time.Sleep(due - time.Since(a.begun))
	}
	n, err := a.ReadCloser.Read(p)
	a.sent += int64(n)
	a.line.sent.Add(int64(n))
	return n, err
}
