package vhdx

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// spareAt is a place in the images of layoutBytes that no block uses yet.
const spareAt = 6 * mib

// layoutBytes is a laid out image, which the tests damage: a disk of 5 MiB with
// data in its first block, at 4 MiB in the file, and nothing in the others.
// Two more MiB stand behind the block, at [spareAt]. All before the blocks may
// be changed; it is mended when the test ends.
func layoutBytes(t testing.TB) []byte {
	t.Helper()
	b, err := smallImage()
	if err != nil {
		t.Fatal(err)
	}
	var c []byte
	if p, ok := images.Get().(*[]byte); ok {
		c = *p
	} else {
		c = bytes.Clone(b)
	}
	t.Cleanup(func() {
		copy(c[:batAt+pageLen], b)
		images.Put(&c)
	})
	return c
}

// images are copies that no test has: a copy of 8 MiB for each of the cases is
// slow where the race detector looks at every byte.
var images sync.Pool

var smallImage = sync.OnceValues(func() ([]byte, error) {
	f, err := Format.Layout(context.Background(), theDisk(), codectest.TestFacts())
	if err != nil {
		return nil, err
	}
	b, err := codectest.ReadAll(f)
	for i := range 2 * mib {
		b = append(b, byte(i>>9)|1)
	}
	return b, err
})

// theDisk is the disk of layoutBytes.
func theDisk() *codectest.Disk {
	return codectest.New("small", 5*mib, 1, codectest.Range{Off: 0, Len: 2 * mib})
}

// seal makes the checksums of headers and region tables right.
func seal(b []byte) {
	for _, at := range []int{header1At, header2At} {
		le.PutUint32(b[at+4:], checksum(b[at:at+headerLen]))
	}
	for _, at := range []int{regionTable1At, regionTable2At} {
		le.PutUint32(b[at+4:], checksum(b[at:at+regionTableLen]))
	}
}

// batIn is entry i of the BAT of an image of layoutBytes.
func batIn(b []byte, i int) []byte { return b[batAt+8*i : batAt+8*i+8] }

// itemIn is the content of metadata item i, in the order of appendMetadata.
func itemIn(b []byte, i int) []byte {
	e := b[metadataAt+32+i*tableEntryLen:]
	off, n := le.Uint32(e[16:]), le.Uint32(e[20:])
	return b[metadataAt+off : metadataAt+off+n]
}

// addItem adds an entry to the metadata table and its content to the region.
func addItem(b []byte, id guid, flags uint32, content []byte) {
	table := b[metadataAt:]
	n := le.Uint16(table[10:])
	le.PutUint16(table[10:], n+1)
	e := table[32+int(n)*tableEntryLen:]
	off := metadataTable + 4096*(int(n)+1)
	copy(e, id[:])
	le.PutUint32(e[16:], uint32(off))
	le.PutUint32(e[20:], uint32(len(content)))
	le.PutUint32(e[24:], flags)
	copy(table[off:], content)
}

// addRegion adds an entry to both region tables.
func addRegion(b []byte, r region) {
	for _, at := range []int{regionTable1At, regionTable2At} {
		t := b[at:]
		n := le.Uint32(t[8:])
		le.PutUint32(t[8:], n+1)
		e := t[16+int(n)*tableEntryLen:]
		copy(e, r.id[:])
		le.PutUint64(e[16:], r.offset)
		le.PutUint32(e[24:], r.length)
		if r.required {
			e[28] = 1
		}
	}
}

// page is 4 KiB that tell where they come from.
func page(seed byte) []byte {
	b := make([]byte, pageLen)
	for i := range b {
		b[i] = seed ^ byte(i*7) ^ byte(i>>8)
	}
	return b
}

// logWrite is a write of a hand-made log entry: a page of data, or zeros.
type logWrite struct {
	off  int64
	data []byte
	zero int64
}

// testLog is the name of hand-made logs.
var testLog = parseGUID("0B5E55ED-0000-4000-8000-00C0FFEE0000")

// makeEntry makes a log entry, which stands at no place yet.
func makeEntry(sequence uint64, tail, flushed, last int64, writes ...logWrite) []byte {
	b := make([]byte, codec.Up(entryHeaderLen+int64(len(writes))*descriptorLen, pageLen))
	for i, w := range writes {
		d := b[entryHeaderLen+i*descriptorLen:]
		le.PutUint64(d[16:], uint64(w.off))
		le.PutUint64(d[24:], sequence)
		if w.data == nil {
			copy(d, "zero")
			le.PutUint64(d[8:], uint64(w.zero))
			continue
		}
		copy(d, "desc")
		copy(d[4:8], w.data[pageLen-4:])
		copy(d[8:16], w.data[:8])
		s := append([]byte(nil), w.data...)
		copy(s, "data")
		le.PutUint32(s[4:], uint32(sequence>>32))
		le.PutUint32(s[pageLen-4:], uint32(sequence))
		b = append(b, s...)
	}
	copy(b, "loge")
	le.PutUint32(b[8:], uint32(len(b)))
	le.PutUint32(b[12:], uint32(tail))
	le.PutUint64(b[16:], sequence)
	le.PutUint32(b[24:], uint32(len(writes)))
	copy(b[32:], testLog[:])
	le.PutUint64(b[48:], uint64(flushed))
	le.PutUint64(b[56:], uint64(last))
	le.PutUint32(b[4:], checksum(b))
	return b
}

// reseal makes the checksum of an entry right.
func reseal(e []byte) []byte {
	le.PutUint32(e[4:], checksum(e))
	return e
}

// putEntry puts e into a ring, around its end where it has to, and returns the
// place behind it.
func putEntry(ring []byte, at int, e []byte) int {
	n := copy(ring[at:], e)
	copy(ring, e[n:])
	return (at + len(e)) % len(ring)
}

// ringOf is the log of an image, by its first header.
func ringOf(b []byte) []byte {
	off, n := le.Uint64(b[header1At+72:]), le.Uint32(b[header1At+68:])
	return b[off : off+uint64(n) : off+uint64(n)]
}

// dirty says in both headers that the log is not empty.
func dirty(b []byte) {
	copy(b[header1At+48:], testLog[:])
	copy(b[header2At+48:], testLog[:])
	seal(b)
}

// applied is what a log with these writes makes of an image, done the simple
// way: on a copy, in order, and the log emptied.
func applied(b []byte, size int64, entries ...[]logWrite) []byte {
	c := make([]byte, max(size, int64(len(b))))
	copy(c, b)
	for _, writes := range entries {
		for _, w := range writes {
			if w.data != nil {
				copy(c[w.off:], w.data)
			} else {
				clear(c[w.off : w.off+w.zero])
			}
		}
	}
	clear(c[header1At+48 : header1At+64])
	clear(c[header2At+48 : header2At+64])
	seal(c)
	return c
}
