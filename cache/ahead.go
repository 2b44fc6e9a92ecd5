package cache

import "time"

const (
	// streams is how many places of one reader are followed at a time.
	streams = 8
	// ramp is the window of a stream as a multiple of what it has read.
	ramp = 4
	// disorder is how far a read may be from where a stream is and still belong to
	// it, in bytes.
	disorder = 2 << 20
	// stale is when blocks fetched ahead and not reached make way for another
	// stream's.
	stale = 5 * time.Second
	// flights is how many small fetches stand for one large one: so many of one
	// stream may be in flight for each that its reader's Parallel allows.
	flights = 8
)

// follower follows where a thing is being read in order. All of it is guarded by
// Cache.mu.
type follower struct {
	r       *Reader
	locate  Locate // nil if the thing is the reader's own
	size    int64  // of the thing, bytes
	streams [streams]stream
	clock   uint64 // touches of streams
}

// stream is a place where a thing is being read. All of it is guarded by
// Cache.mu.
type stream struct {
	f       *follower
	next    int64  // offset after the furthest byte read
	ran     int64  // bytes read since the stream began
	window  int64  // bytes to hold ahead of next; 0 until a second read continues it
	planned int64  // offset, of a block in a reader's own thing, that read-ahead has come to
	unread  int64  // bytes fetched ahead and not reached, in flight or landed
	cur     *batch // the one it is reading in
	flights int    // read-ahead of this slot in flight, earlier streams' included
	flying  int64  // bytes of flights
	used    uint64 // follower.clock of the last touch; 0 is a free slot
}

// touch notes a read of n bytes at off and returns the stream that it belongs to.
// Callers hold Cache.mu.
func (f *follower) touch(off, n int64) *stream {
	r := f.r
	end := off + n
	// Requests arrive a few places out of order: those of the kernel, and those of
	// decoders, of which many work at once.
	slack := max(2*r.block, 4*n, disorder)
	var near *stream
	oldest := &f.streams[0]
	f.clock++
	for i := range f.streams {
		s := &f.streams[i]
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
		*oldest = stream{f: f, next: end, ran: n, used: f.clock, flights: oldest.flights, flying: oldest.flying}
		return oldest
	}
	s := near
	s.used = f.clock
	if end <= s.next {
		return s // a request that comes late
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
	r := s.f.r
	c := r.c
	c.pin(s, nil)
	if s.unread == 0 {
		return
	}
	for _, b := range r.entries {
		if b.owner == s {
			c.claim(b)
		}
	}
}

// plan starts the read-ahead that the window and the budgets allow. It is called
// with Cache.mu held after every read of the stream, and mostly returns
// at once.
func (s *stream) plan() {
	if s.window == 0 {
		return
	}
	f := s.f
	if f.r.closed || f.r.c.closed {
		return
	}
	if f.locate != nil {
		s.planPlaced()
		return
	}
	r := f.r
	s.planned = max(s.planned, r.up(s.next))
	end := min(r.up(s.next+s.window), r.up(r.size))
	if end < r.size {
		// Not yet the end: wait until a fetch of some size comes together, and
		// once there is room for two, let fetches be whole aligned spans.
		span := r.span << r.shift
		window := s.window &^ (r.block - 1)
		if window >= 2*span {
			end -= end % span
		} else if end-s.planned < min(span, window/2) {
			return
		}
	}
	s.fetch(s.planned>>r.shift, end>>r.shift, true)
}

// up rounds up to a whole block.
func (r *Reader) up(off int64) int64 { return (off + r.block - 1) &^ (r.block - 1) }

// fetch starts flights for what is missing of the blocks from first up to end, and
// returns the block that it came to before it ran out of room. Of a reader's own
// thing it notes that as planned, and keeps to aligned spans.
func (s *stream) fetch(first, end int64, own bool) int64 {
	r := s.f.r
	for i := first; i < end; {
		n := min(end-i, r.span)
		if own {
			s.planned = i << r.shift
			n = min(n, r.span-i%r.span)
		}
		if data, b := r.find(i); data != nil || b != nil {
			i++
			continue
		}
		n = r.run(i, n)
		room := s.room()
		if room < n && s.unread > 0 {
			return i // wait for the room of a whole fetch, rather than make small ones
		}
		if n = min(n, room); n <= 0 {
			return i
		}
		r.start(i, int(n), s, false)
		i += n
	}
	if own {
		s.planned = end << r.shift
	}
	return end
}

// room returns how many blocks may be fetched ahead now.
func (s *stream) room() int64 {
	r := s.f.r
	c := r.c
	if s.flights >= flights*r.par || s.flights >= r.par && s.flying >= int64(r.par)*r.span<<r.shift {
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
