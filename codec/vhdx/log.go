package vhdx

import (
	"context"

	"imagefs/codec"
)

const (
	// maxLog bounds a log that is applied, and so the memory for it. Writers
	// make logs of 1 MiB.
	maxLog = 64 * mib

	entryHeaderLen = 64
	descriptorLen  = 32

	// maxHashed bounds the work of checking entries, in lengths of the ring.
	// In a ring that was written round and round an old entry may be partly
	// overwritten by new ones, so about two; many entries that overlap are
	// made to take time.
	maxHashed = 16
)

// logEntry is the header of a log entry (2.3.1.1) at a place in the ring.
type logEntry struct {
	at       int64 // in the ring
	length   int64 // with its descriptors and data sectors; 0 is no entry
	tail     int64 // where the oldest entry is that must be applied before it
	sequence uint64
	count    int64  // descriptors
	flushed  uint64 // the file was at least so long when it was written
	last     uint64 // the file has to be so long
}

// replay reads the log that h points to and returns src with it applied, and
// the number of entries that it had. The caller has checked the log's range.
func replay(ctx context.Context, src codec.Source, h header) (codec.Source, int, error) {
	if h.logVersion != 0 {
		return nil, 0, codec.Unsupportedf("log version %d in a log that is not empty", h.logVersion)
	}
	if h.logLength > maxLog {
		return nil, 0, codec.Unsupportedf("log of %d bytes that is not empty, more than %d; attach the disk to the program that wrote it once, or repair a copy with qemu-img check -r all", h.logLength, maxLog)
	}
	ring := make([]byte, h.logLength)
	for at := 0; at < len(ring); at += mib {
		piece := ring[at : at+mib]
		if err := codec.ReadFull(ctx, src, piece, int64(h.logOffset)+int64(at), "log"); err != nil {
			return nil, 0, err
		}
	}
	entries, err := scan(ring, h.logGUID)
	if err != nil {
		return nil, 0, err
	}
	active, err := activeSequence(entries, int64(len(ring)))
	if err != nil {
		return nil, 0, err
	}
	head := active[len(active)-1]
	if head.flushed > uint64(src.Size()) {
		return nil, 0, codec.Corruptf("truncated: the log says that at least %d bytes were written, the file has %d", head.flushed, src.Size())
	}
	if head.last > codec.MaxSize {
		return nil, 0, codec.Corruptf("log entry at %#x: last file offset %#x", head.at, head.last)
	}
	size := max(int64(head.last), src.Size())
	var writes []patch
	for _, e := range active {
		if writes, err = e.appendWrites(writes, ring); err != nil {
			return nil, 0, err
		}
	}
	logEnd := int64(h.logOffset) + int64(h.logLength)
	for _, w := range writes {
		if w.off < headersEnd || w.end > size || w.off < logEnd && w.end > int64(h.logOffset) {
			return nil, 0, codec.Corruptf("log: write of %d bytes to %#x, which is in the headers, in the log or past the end (%d bytes)", w.end-w.off, w.off, size)
		}
	}
	return newOverlay(src, size, ring, writes), len(active), nil
}

// scan finds the valid entries of a ring that belong to the log named id, and
// returns them by sector: length 0 where none begins.
func scan(ring []byte, id guid) ([]logEntry, error) {
	entries := make([]logEntry, len(ring)/pageLen)
	hashed := 0
	for i := range entries {
		at := i * pageLen
		b := ring[at:]
		length := int(le.Uint32(b[8:]))
		if string(b[:4]) != "loge" || guid(b[32:48]) != id || le.Uint64(b[16:]) == 0 ||
			length == 0 || length%pageLen != 0 || length > len(ring) {
			continue
		}
		if hashed += length; hashed > maxHashed*len(ring) {
			return nil, codec.Corruptf("log: entries overlap")
		}
		first, second := b, ring[:0] // second is what wraps around the end
		if len(b) > length {
			first = b[:length]
		} else {
			second = ring[:length-len(b)]
		}
		if le.Uint32(b[4:]) != checksum(first, second) {
			continue
		}
		entries[i] = logEntry{
			at:       int64(at),
			length:   int64(length),
			tail:     int64(le.Uint32(b[12:])),
			sequence: le.Uint64(b[16:]),
			count:    int64(le.Uint32(b[24:])),
			flushed:  le.Uint64(b[48:]),
			last:     le.Uint64(b[56:]),
		}
	}
	return entries, nil
}

// activeSequence returns the entries to apply, the oldest first (2.3.2): of
// the runs in which each entry follows the one before with the next sequence
// number, that with the newest head among those that hold their head's tail.
func activeSequence(entries []logEntry, ring int64) ([]logEntry, error) {
	next := func(i int) (int, bool) {
		e := entries[i]
		n := int((e.at + e.length) % ring / pageLen)
		return n, entries[n].length > 0 && entries[n].sequence == e.sequence+1
	}
	// heads[i] is the last entry, plus 1, of the run that entry i is in. Every
	// walk ends, since sequence numbers grow, and stops where one was before.
	heads := make([]int, len(entries))
	for i := range entries {
		if entries[i].length == 0 || heads[i] != 0 {
			continue
		}
		end, more := i, true
		for n := i; more && heads[end] == 0; n, more = next(end) {
			end = n
		}
		head := end + 1
		if heads[end] != 0 {
			head = heads[end]
		}
		for n, more := i, true; more && heads[n] == 0; n, more = next(n) {
			heads[n] = head
		}
	}
	tail, best := -1, uint64(0)
	for i, e := range entries {
		if heads[i] != i+1 || e.sequence < best || e.tail%pageLen != 0 || e.tail >= ring {
			continue
		}
		t := int(e.tail / pageLen)
		if heads[t] != i+1 {
			continue
		}
		if e.sequence == best {
			return nil, codec.Corruptf("log: two sequences of entries end with number %d", best)
		}
		tail, best = t, e.sequence
	}
	if tail < 0 {
		return nil, codec.Corruptf("log: it is not empty, but has no complete sequence of entries")
	}
	var active []logEntry
	var total int64
	for n, more := tail, true; more; n, more = next(n) {
		active = append(active, entries[n])
		total += entries[n].length
	}
	if total > ring {
		return nil, codec.Corruptf("log: its entries overlap")
	}
	return active, nil
}

// appendWrites appends what the entry writes, in its order (2.3.1.2 to 2.3.1.4).
// It completes the data sectors in the ring to the pages that they stand for:
// the descriptor holds the bytes that the sector's own marks displace.
func (e logEntry) appendWrites(writes []patch, ring []byte) ([]patch, error) {
	bad := func(field string, v uint64) error {
		return codec.Corruptf("log entry at %#x: %s %#x", e.at, field, v)
	}
	part := func(rel, n int64) []byte { // never across the ring's end: n divides rel and the ring
		at := (e.at + rel) % int64(len(ring))
		return ring[at : at+n : at+n]
	}
	if e.count > (e.length-entryHeaderLen)/descriptorLen {
		return nil, bad("descriptor count", uint64(e.count))
	}
	data := codec.Up(entryHeaderLen+e.count*descriptorLen, pageLen) // the next data sector
	for i := range e.count {
		d := part(entryHeaderLen+i*descriptorLen, descriptorLen)
		off, seq := le.Uint64(d[16:]), le.Uint64(d[24:])
		if off%pageLen != 0 || off > codec.MaxSize {
			return nil, bad("descriptor with file offset", off)
		}
		if seq != e.sequence {
			return nil, bad("descriptor with sequence number", seq)
		}
		switch string(d[:4]) {
		case "zero":
			n := le.Uint64(d[8:])
			if n%pageLen != 0 || n > codec.MaxSize-off {
				return nil, bad("zero descriptor with length", n)
			}
			if n > 0 {
				writes = append(writes, patch{int64(off), int64(off + n), zeroData})
			}
		case "desc":
			if data > e.length-pageLen {
				return nil, bad("fewer data sectors than data descriptors, length", uint64(e.length))
			}
			s := part(data, pageLen)
			data += pageLen
			if string(s[:4]) != "data" {
				return nil, bad("data sector with signature", uint64(le.Uint32(s)))
			}
			if seq := uint64(le.Uint32(s[4:]))<<32 | uint64(le.Uint32(s[pageLen-4:])); seq != e.sequence {
				return nil, bad("data sector with sequence number", seq)
			}
			copy(s, d[8:16])
			copy(s[pageLen-4:], d[4:8])
			at := (e.at + data - pageLen) % int64(len(ring))
			writes = append(writes, patch{int64(off), int64(off) + pageLen, at})
		default:
			return nil, bad("descriptor with signature", uint64(le.Uint32(d)))
		}
	}
	return writes, nil
}
