package qcow2

import (
	"encoding/binary"
	"errors"
	"sync"
)

// A deflate decoder (RFC 1951) for what a compressed cluster is: all input is
// in memory, and so is all output, whose size is known. Streaming decoders copy
// through a window and ask for input byte by byte; here the output is the
// window and input comes 8 bytes at a time, which is several times faster.
//
// It is lenient at the end, as the field's decoders are: a full cluster is a
// good one, even if the stream goes on, lacks its final block, or is followed
// by other bytes.

var (
	errShort   = errors.New("data ends before the cluster is full")
	errCode    = errors.New("deflate: invalid code")
	errTree    = errors.New("deflate: invalid code lengths")
	errBlock   = errors.New("deflate: invalid block type")
	errStored  = errors.New("deflate: length of a stored block differs from its complement")
	errTooFar  = errors.New("deflate: distance reaches before the start of the cluster")
	errRepeats = errors.New("deflate: repeat count of code lengths")
)

// inflater holds the tables of one stream.
type inflater struct {
	tables
	pre  [1 << preRoot]uint32 // decodes code lengths
	lens [maxLits + maxDists]uint8
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// inflate fills dst from the raw deflate stream at the start of src.
func inflate(dst, src []byte) error {
	f := inflaters.Get().(*inflater)
	defer inflaters.Put(f)
	_, err := f.run(dst, bits{src: src}, false)
	return err
}

// measure is inflate, and returns how many bytes of src the stream has. It is 0
// where the stream is none for stricter decoders: it goes on when dst is full,
// or lacks its final block.
func measure(dst, src []byte) (n int, err error) {
	f := inflaters.Get().(*inflater)
	defer inflaters.Put(f)
	return f.run(dst, bits{src: src}, true)
}

// bits reads src from the lowest bit of each byte on. Bits of buf above n are
// either zero or those of src from ip on, so that they may be put again.
type bits struct {
	src []byte
	ip  int
	buf uint64
	n   uint // bits of buf that count
}

// fill makes n at least 56, or all that src has.
func (b *bits) fill() {
	for b.n < 56 && b.ip < len(b.src) {
		b.buf |= uint64(b.src[b.ip]) << b.n
		b.ip++
		b.n += 8
	}
}

// take returns k bits, at most 16, and false if there are not as many.
func (b *bits) take(k uint) (uint32, bool) {
	if b.n < k {
		if b.fill(); b.n < k {
			return 0, false
		}
	}
	v := uint32(b.buf & (1<<k - 1))
	b.buf >>= k
	b.n -= k
	return v, true
}

// look finds the next code in a table with root bits, and takes it: the entry
// without its extra bits.
func (b *bits) look(table []uint32, root uint) (uint32, error) {
	b.fill()
	e := table[b.buf&(1<<root-1)]
	if e&entrySub != 0 {
		if b.n < root {
			return 0, errShort
		}
		b.buf >>= root
		b.n -= root
		e = table[entryStart(e)+b.buf&(1<<entryLen(e)-1)]
	}
	k := entryLen(e)
	switch {
	case k > b.n:
		return 0, errShort
	case k == 0:
		return 0, errCode
	}
	b.buf >>= k
	b.n -= k
	return e, nil
}

// run fills dst. If it is to measure, it then reads on to the end of the stream
// and returns where in the source that is, as measure does.
func (f *inflater) run(dst []byte, b bits, measure bool) (n int, err error) {
	for op := 0; ; {
		head, ok := b.take(3)
		if !ok {
			return 0, errShort
		}
		t, end := &f.tables, false
		switch head >> 1 {
		case 0:
			op, end, err = b.stored(dst, op)
			t = nil
		case 1:
			t = fixed()
		case 2:
			err = f.readTables(&b)
		default:
			err = errBlock
		}
		if t != nil && err == nil {
			op, end, err = t.block(dst, op, &b)
		}
		switch {
		case err != nil:
			return 0, err
		case op < len(dst) && head&1 == 1:
			return 0, errShort
		case op < len(dst):
		case !measure || op > len(dst):
			return 0, nil
		case end || t.ends(&b):
			return f.tail(b, head&1 == 1), nil
		default:
			return 0, nil
		}
	}
}

// tail reads what follows a block with which the output is full, and which is
// the final one or not: blocks of nothing up to a final one. It returns where
// the stream ends in the source, 0 if it is not so.
func (f *inflater) tail(b bits, final bool) (n int) {
	for !final {
		head, ok := b.take(3)
		if !ok {
			return 0
		}
		final = head&1 == 1
		switch head >> 1 {
		case 0:
			if _, end, err := b.stored(nil, 0); err != nil || !end {
				return 0
			}
		case 1:
			if !fixed().ends(&b) {
				return 0
			}
		case 2:
			if f.readTables(&b) != nil || !f.tables.ends(&b) {
				return 0
			}
		default:
			return 0
		}
	}
	return b.ip - int(b.n/8)
}

// ends reports whether a block ends here, which it does not inside a stored one,
// that has no tables.
func (t *tables) ends(b *bits) bool {
	if t == nil {
		return false
	}
	e, err := b.look(t.lit[:], litRoot)
	return err == nil && e&entryLiteral == 0 && e&entryEnd != 0
}

// stored copies a stored block to dst at op and returns where it stopped, and
// whether the block ends there.
func (b *bits) stored(dst []byte, op int) (_ int, end bool, err error) {
	b.ip -= int(b.n / 8) // whole bytes that were read ahead
	b.buf, b.n = 0, 0
	if len(b.src)-b.ip < 4 {
		return op, false, errShort
	}
	n := binary.LittleEndian.Uint16(b.src[b.ip:])
	if n != ^binary.LittleEndian.Uint16(b.src[b.ip+2:]) {
		return op, false, errStored
	}
	b.ip += 4
	have := b.src[b.ip:]
	k := copy(dst[op:], have[:min(int(n), len(have))])
	b.ip += k
	if op += k; k < int(n) && op < len(dst) {
		return op, false, errShort
	}
	return op, k == int(n), nil
}

// readTables reads the codes of a dynamic block. RFC 1951, section 3.2.7.
func (f *inflater) readTables(b *bits) error {
	counts, ok := b.take(14)
	if !ok {
		return errShort
	}
	lits := int(counts&31) + 257
	dists := int(counts>>5&31) + 1
	if lits > maxLits || dists > maxDists {
		return errTree
	}
	var pre [19]uint8
	for _, i := range preOrder[:counts>>10+4] {
		v, ok := b.take(3)
		if !ok {
			return errShort
		}
		pre[i] = uint8(v)
	}
	if !build(f.pre[:], preRoot, pre[:], preSymbols[:]) {
		return errTree
	}
	lens := f.lens[:lits+dists]
	for i := 0; i < len(lens); {
		e, err := b.look(f.pre[:], preRoot)
		if err != nil {
			return err
		}
		sym := e >> 16
		if sym < 16 {
			lens[i] = uint8(sym)
			i++
			continue
		}
		var prev uint8
		extra, base := uint(7), 11
		switch sym {
		case 16:
			if i == 0 {
				return errRepeats
			}
			prev, extra, base = lens[i-1], 2, 3
		case 17:
			extra, base = 3, 3
		}
		v, ok := b.take(extra)
		if !ok {
			return errShort
		}
		n := base + int(v)
		if n > len(lens)-i {
			return errRepeats
		}
		for range n {
			lens[i] = prev
			i++
		}
	}
	if !build(f.lit[:], litRoot, lens[:lits], litSymbols[:]) || !build(f.dist[:], distRoot, lens[lits:], distSymbols[:]) {
		return errTree
	}
	return nil
}

// block decodes the codes of a block to dst at op, up to its end or that of
// dst, and returns where it stopped, and whether it took the end of the block.
// A match may reach past dst.
func (t *tables) block(dst []byte, op int, b *bits) (_ int, end bool, err error) {
	for {
		if op, end, err = t.fast(dst, op, b); err != nil || end {
			return op, end, err
		}
		// Near an end of input or output: one code at a time.
		e, err := b.look(t.lit[:], litRoot)
		switch {
		case err != nil:
			return op, false, err
		case e&entryLiteral != 0:
			dst[op] = byte(e >> 16)
			op++
		case e&entryEnd != 0:
			return op, true, nil
		default:
			more, ok := b.take(entryExtra(e))
			if !ok {
				return op, false, errShort
			}
			length := int(e>>16) + int(more)
			if e, err = b.look(t.dist[:], distRoot); err != nil {
				return op, false, err
			}
			if more, ok = b.take(entryExtra(e)); !ok {
				return op, false, errShort
			}
			dist := int(e>>16) + int(more)
			if dist > op {
				return op, false, errTooFar
			}
			stop := op + length
			for end := min(stop, len(dst)); op < end; op++ {
				dst[op] = dst[op-dist]
			}
			op = stop
		}
		if op >= len(dst) {
			return op, false, nil
		}
	}
}

// Room that a step of fast needs: it reads 8 bytes twice, and writes two
// literals and then a match, in words.
const (
	fastIn  = 16
	fastOut = 2 + maxMatch + 8
)

// fast decodes while there is room enough on both sides that no step needs to
// look: to the end of the block, or to where room ends.
func (t *tables) fast(dst []byte, op int, b *bits) (_ int, end bool, err error) {
	src, ip, buf, n := b.src, b.ip, b.buf, b.n
	inEnd, outEnd := len(src)-fastIn, len(dst)-fastOut
	le := binary.LittleEndian
loop:
	for ip <= inEnd && op <= outEnd {
		buf |= le.Uint64(src[ip:]) << (n & 63)
		ip += int((63 - n) >> 3)
		n |= 56 // at least 56 bits count
		e := t.lit[buf&(1<<litRoot-1)]
		if e&entryLiteral != 0 {
			buf >>= e & 63
			n -= uint(e & 63)
			dst[op] = byte(e >> 16)
			op++
			e = t.lit[buf&(1<<litRoot-1)]
			if e&entryLiteral != 0 {
				buf >>= e & 63
				n -= uint(e & 63)
				dst[op] = byte(e >> 16)
				op++
				e = t.lit[buf&(1<<litRoot-1)]
				if e&entryLiteral != 0 {
					buf >>= e & 63
					n -= uint(e & 63)
					dst[op] = byte(e >> 16)
					op++
					continue
				}
			}
			buf |= le.Uint64(src[ip:]) << (n & 63)
			ip += int((63 - n) >> 3)
			n |= 56
		}
		if e&entrySpecial != 0 {
			if e&entrySub != 0 {
				buf >>= litRoot
				n -= litRoot
				e = t.lit[(entryStart(e)+buf&(1<<entryLen(e)-1))&(litTable-1)]
			}
			k := entryLen(e)
			if e&entryLiteral != 0 {
				buf >>= k & 63
				n -= k
				dst[op] = byte(e >> 16)
				op++
				continue
			}
			if e&entrySpecial != 0 {
				if k == 0 {
					err = errCode
					break loop
				}
				buf >>= k & 63
				n -= k
				end = true
				break loop
			}
		}
		// A match. The low byte counts the code and its extra bits, and
		// both codes with theirs are at most 48 bits.
		length := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&63))
		buf >>= e & 63
		n -= uint(e & 63)
		e = t.dist[buf&(1<<distRoot-1)]
		if e&entrySub != 0 {
			buf >>= distRoot
			n -= distRoot
			e = t.dist[(entryStart(e)+buf&(1<<entryLen(e)-1))&(distTable-1)]
		}
		if e&0xff == 0 {
			err = errCode
			break loop
		}
		dist := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&63))
		buf >>= e & 63
		n -= uint(e & 63)
		from := op - dist
		if from < 0 {
			err = errTooFar
			break loop
		}
		stop := op + length
		switch {
		case dist >= 8:
			// Whole words, past the end of the match: what is written
			// there is written again.
			le.PutUint64(dst[op:], le.Uint64(dst[from:]))
			if length > 8 {
				le.PutUint64(dst[op+8:], le.Uint64(dst[from+8:]))
				for op, from = op+16, from+16; op < stop; op, from = op+8, from+8 {
					le.PutUint64(dst[op:], le.Uint64(dst[from:]))
				}
			}
		default:
			// The pattern, repeated to a word, and then the word.
			v := le.Uint64(dst[from:]) & (1<<(8*uint(dist)&63) - 1)
			step := dist
			for step <= 4 {
				v |= v << (8 * uint(step) & 63)
				step *= 2
			}
			for ; op < stop; op += step {
				le.PutUint64(dst[op:], v)
			}
		}
		op = stop
	}
	b.ip, b.buf, b.n = ip, buf, n
	return op, end, err
}
