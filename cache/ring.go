package cache

// The pool: landed batches in four lists, by who needs them. Everything in this
// file is called with Cache.mu held.

// list is a queue of batches, oldest first.
type list struct {
	front, back *batch
	bytes       int64
}

func (l *list) push(b *batch) {
	l.bytes += b.size
	b.where, b.prev, b.next = l, l.back, nil
	if l.back != nil {
		l.back.next = b
	} else {
		l.front = b
	}
	l.back = b
}

// move takes b out of the list it is in and appends it to l.
func (l *list) move(b *batch) {
	b.unlink()
	l.push(b)
}

// unlink takes b out of the list it is in.
func (b *batch) unlink() {
	l := b.where
	l.bytes -= b.size
	if b.prev != nil {
		b.prev.next = b.next
	} else {
		l.front = b.next
	}
	if b.next != nil {
		b.next.prev = b.prev
	} else {
		l.back = b.prev
	}
	b.where, b.prev, b.next = nil, nil, nil
}

// place puts a batch that has just landed where its readers want it.
func (c *Cache) place(b *batch) {
	c.ringBytes += b.size
	switch {
	case b.pins > 0:
		c.pinned.push(b)
	case b.owner != nil:
		c.ahead.push(b)
	default:
		c.leave(b)
	}
}

// drop takes a batch out of the pool. Whoever holds its bytes may go on.
func (c *Cache) drop(b *batch) {
	c.claim(b)
	b.unlink()
	c.ringBytes -= b.size
	c.forget(b)
}

// forget removes every way to find b: its entries and the streams in it.
func (c *Cache) forget(b *batch) {
	for i := b.first; i < b.first+int64(b.n); i++ {
		if b.r.entries[i] == b {
			delete(b.r.entries, i)
		}
	}
	if b.pins > 0 {
		b.r.own.unpin(b)
		for _, f := range b.r.placed {
			f.unpin(b)
		}
		b.pins = 0
	}
}

// unpin ends that streams are reading in b.
func (f *follower) unpin(b *batch) {
	for i := range f.streams {
		if s := &f.streams[i]; s.cur == b {
			s.cur = nil
		}
	}
}

// reserve makes room for n bytes and returns what had to leave for it. Batches a
// stream is in the middle of, and those ahead of one, are taken only when there
// is nothing else.
func (c *Cache) reserve(n int64) (out []*batch) {
	for c.ringBytes+c.reserved+n > c.lim.pool {
		// The newest of the spent may still be wanted by a request that is late.
		if b := c.spent.front; b != nil && (c.spent.bytes > c.lim.spent/2 || c.old.front == nil) {
			c.drop(b)
			continue
		}
		b := c.old.front
		if b == nil {
			b = c.pinned.front
		}
		if b == nil {
			b = c.ahead.front
		}
		if b == nil {
			break
		}
		c.drop(b)
		out = append(out, b)
	}
	c.reserved += n
	return out
}

// claim ends a batch's being ahead of its stream: it has been reached, or given up.
func (c *Cache) claim(b *batch) {
	s := b.owner
	if s == nil {
		return
	}
	b.owner = nil
	c.unread -= b.size
	s.unread -= b.size
	if s.unread == 0 {
		c.active--
	}
	if b.where == &c.ahead {
		c.old.move(b)
	}
}

// leave puts a batch that no stream is reading, and which is in no list, with its
// like. The newest of what scans have read stays for a while, for requests that
// arrive late; the others go, and not to the store: what is read once would drive
// out what is read often, at the price of a copy.
func (c *Cache) leave(b *batch) {
	if !b.spent {
		c.old.push(b)
		return
	}
	c.spent.push(b)
	for c.spent.bytes > c.lim.spent && c.spent.front != b {
		c.drop(c.spent.front)
	}
}

// pin says that stream s is now reading in b (nil: in a block outside of the
// pool). The batch it was reading before becomes the newest of the old ones, so
// that requests arriving late still find it.
func (c *Cache) pin(s *stream, b *batch) {
	if s.cur == b {
		return
	}
	if was := s.cur; was != nil {
		was.pins--
		if was.pins == 0 {
			was.spent = s.ran > s.f.r.scan
			if was.where == &c.pinned {
				was.unlink()
				c.leave(was)
			}
		}
	}
	s.cur = b
	if b == nil {
		return
	}
	c.claim(b)
	b.pins++
	if b.where == &c.old || b.where == &c.spent {
		c.pinned.move(b)
	}
}
