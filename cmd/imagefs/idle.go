package main

import (
	"context"
	"runtime/debug"
	"time"
)

// releaseIdle gives memory back whenever nothing was read for a while: cached
// blocks, disks that are open for the next time, and what the collector keeps in
// reserve. It ends with ctx.
func (s *session) releaseIdle(ctx context.Context, after time.Duration) {
	tick := time.NewTicker(max(after/4, time.Millisecond))
	defer tick.Stop()
	last, since, done := s.reads(), time.Now(), true // nothing was read yet
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if n := s.reads(); n != last {
				last, since, done = n, now, false
			} else if !done && now.Sub(since) >= after {
				s.release()
				last, done = s.reads(), true
			}
		}
	}
}

// reads counts what readers of the mount asked for.
func (s *session) reads() uint64 {
	c := s.cache.Stats()
	return c.Hits + c.Misses + s.store.Counts().Reads
}

func (s *session) release() {
	s.opener.Release()
	s.cache.Release()
	// Readers of disks that nothing uses close when the collector finds them.
	debug.FreeOSMemory()
	debug.FreeOSMemory()
}
