package s3

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"imagefs/remote"
)

const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second

	// progress is how much has to be delivered for the budget to start
	// anew, so that a trickle does not keep an operation going.
	progress = 64 << 10
)

// errStalled is the cause of requests cut off for their silence.
var errStalled = errors.New("connection stalled")

// try is one operation: its attempts share a budget.
type try struct {
	s        *Store
	budget   time.Duration
	attempts int
	renewed  bool // credentials were looked for again

	mu       sync.Mutex // guards the fields below: bodies are sent by goroutines of net/http
	deadline time.Time  // of the next progress
	pause    time.Duration
	timer    *time.Timer // ends the attempt
}

// do runs op until it succeeds, fails for good, or makes no progress for the
// budget. The context of an attempt ends when its connection is silent for
// too long; op calls alive when it hears something.
func (s *Store) do(ctx context.Context, op func(ctx context.Context, t *try) error) error {
	return s.within(ctx, s.budget, op)
}

func (s *Store) within(ctx context.Context, budget time.Duration, op func(ctx context.Context, t *try) error) error {
	t := &try{s: s, budget: budget, deadline: time.Now().Add(budget), pause: firstPause}
	var last error // that says more than that the end of the budget came
	for {
		err := t.attempt(ctx, op)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.stats.errors.Add(1)
		if err != errStalled || last == nil {
			last = err
		}
		if !t.again(err) {
			return translate(err)
		}
		if !t.wait(ctx) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: no progress in %v, %d attempts: %w", remote.ErrUnavailable, t.budget, t.attempts, plain(last))
		}
		s.stats.retries.Add(1)
	}
}

func (t *try) attempt(ctx context.Context, op func(ctx context.Context, t *try) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t.attempts++
	t.mu.Lock()
	t.timer = time.AfterFunc(t.silence(), func() { cancel(errStalled) })
	t.mu.Unlock()
	defer t.timer.Stop()
	err := op(ctx, t)
	if err != nil && context.Cause(ctx) == errStalled {
		return errStalled // in place of a context error that is not the caller's
	}
	return err
}

// silence is how long the connection may be silent from now on. The caller
// holds t.mu.
func (t *try) silence() time.Duration {
	return max(min(t.s.stall, time.Until(t.deadline)), 0)
}

// alive notes that the connection is not silent.
func (t *try) alive() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer.Reset(t.silence())
}

// patient allows a silence as long as the budget: the server has everything
// and is at work.
func (t *try) patient() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer.Reset(max(time.Until(t.deadline), 0))
}

// progressed notes that the operation got on.
func (t *try) progressed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deadline = time.Now().Add(t.budget)
	t.pause = firstPause
	t.timer.Reset(t.silence())
}

// again reports whether another attempt may end otherwise than with err.
func (t *try) again(err error) bool {
	v := judge(err)
	switch {
	case v.again:
		return true
	case v.err == remote.ErrCredentials && !t.renewed:
		t.renewed = true
		return t.s.renew()
	case t.s.region == "" && t.attempts == 1 && region(err) != "":
		return true // the client has learned the bucket's region from it
	}
	return false
}

// region returns the region that the server asks for in an error, or "".
func region(err error) string {
	var resp minio.ErrorResponse
	if errors.As(err, &resp) {
		switch resp.Code {
		case "AuthorizationHeaderMalformed", "InvalidRegion":
			return resp.Region
		}
	}
	return ""
}

// wait pauses before the next attempt. It reports false if the budget does
// not allow for one.
func (t *try) wait(ctx context.Context) bool {
	// Between half and the whole of the pause: many readers that failed
	// together do not come back together.
	t.mu.Lock()
	pause := t.pause/2 + rand.N(t.pause/2)
	t.pause = min(2*t.pause, lastPause)
	left := time.Until(t.deadline)
	t.mu.Unlock()
	if left <= pause {
		return false
	}
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}
