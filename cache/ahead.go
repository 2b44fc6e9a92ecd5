package cache

import "time"

const (
	// streams is how many places of one reader are followed at a time.
	streams = 8
	// ramp is the window of a stream as a multiple of what it has read.
	ramp = 4
	// stale is when blocks fetched ahead and not reached make way for another
	// stream's.
	stale = 5 * time.Second
)

// stream is a place where a reader is being read. All of it is guarded by
// Cache.mu.
type stream struct {
	r       *Reader
	next    int64  // offset after the furthest byte read
	ran     int64  // bytes read since the stream began
	window  int64  // bytes to hold ahead of next; 0 until a second read continues it
	planned int64  // first block not looked at by read-ahead
	unread  int64  // bytes fetched ahead and not reached, in flight or landed
	cur     *batch // the one it is reading in
	flights int    // read-ahead of this slot in flight, earlier streams' included
	used    uint64 // Reader.clock of the last touch; 0 is a free slot
}

// touch notes a read of n bytes at off. It returns the stream that the read
// advanced, or nil when it told nothing new. Callers hold Cache.mu.
func (r *Reader) touch(off, n int64) *stream {
	end := off + n
	// Kernel requests of one reader arrive a few places out of order.
	slack := max(2*r.block, 4*n)
	var near *stream
	oldest := &r.streams[0]
	r.clock++
	for i := range r.streams {
		s := &r.streams[i]
		if s.used == 0 {
			oldest = s
			continue
		}
		if s.next == off {
			near = s
			break
		}
		if s.next == end || s.window > 0 && off-s.next <= slack && s.next-off <= slack {
			near = s
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	if near == nil {
		oldest.leave()
		*oldest = stream{r: r, next: end, ran: n, used: r.clock, flights: oldest.flights}
		return oldest
	}
	s := near
	s.used = r.clock
	if end <= s.next {
		return nil
	}
	s.ran += end - s.next
	s.next = end
	s.window = min(max(ramp*s.ran, r.block), r.window)
	return s
}

// leave ends a stream whose slot is wanted: what was fetched for it is old.
func (s *stream) leave() {
	if s.used == 0 {
		return
	}
	c := s.r.c
	c.pin(s, nil)
	if s.unread == 0 {
		return
	}
	for _, b := range s.r.entries {
		if b.owner == s {
			c.claim(b)
		}
	}
}

// plan starts the read-ahead that the window and the budgets allow. It is called
// with Cache.mu held after every read that advanced the stream, and mostly returns
// at once.
func (s *stream) plan() {
	if s.window == 0 {
		return
	}
	r := s.r
	c := r.c
	if r.closed || c.closed {
		return
	}
	s.planned = max(s.planned, (s.next-1)>>r.shift+1)
	end := min((s.next+s.window+r.block-1)>>r.shift, r.blocks)
	if end < r.blocks {
		// Not yet the end: wait until a fetch of some size comes together, and
		// once there is room for two, let fetches be whole aligned spans.
		window := s.window >> r.shift
		if window >= 2*r.span {
			end -= end % r.span
		} else if end-s.planned < min(r.span, window/2) {
			return
		}
	}
	for s.planned < end {
		first := s.planned
		n := min(end, first-first%r.span+r.span) - first
		room := s.room()
		if room < n && s.unread > 0 {
			return // wait for the room of a whole fetch, rather than make small ones
		}
		if n = min(n, room); n <= 0 {
			return
		}
		if data, b := r.find(first); data != nil || b != nil {
			s.planned++
			continue
		}
		n = r.run(first, n)
		r.start(first, int(n), s, false)
		s.planned += n
	}
}

// room returns how many blocks may be fetched ahead now.
func (s *stream) room() int64 {
	r := s.r
	c := r.c
	if s.flights >= r.par {
		return 0
	}
	others := c.active
	if s.unread > 0 {
		others--
	}
	n := min(c.lim.inFlight-c.flyAhead, c.lim.ahead/(others+1)-s.unread)
	if n < r.block {
		return 0
	}
	for c.unread+min(n, r.block) > c.lim.ahead {
		b := c.ahead.front
		if b == nil || time.Since(b.at) < stale {
			break
		}
		c.claim(b)
	}
	return min(n, c.lim.ahead-c.unread) >> r.shift
}
