package zvhd

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// A second reader, which shares nothing with the package but the description of
// the formats: it reads a whole image in order, as the vendor's would.

// naiveDisk is the disk in the image b, as long as its original size.
func naiveDisk(b []byte) ([]byte, error) {
	if len(b) < 8192 {
		return nil, fmt.Errorf("an image of %d bytes", len(b))
	}
	last := b[len(b)-4096:]
	switch string(last[:6]) {
	case "stream":
		return naive1(b)
	case "z2strm":
		return naive2(b, last)
	}
	return nil, fmt.Errorf("an image that ends with a header of %q", last[:6])
}

func u32(b []byte) int { return int(binary.LittleEndian.Uint32(b)) }

func u64(b []byte) int { return int(binary.LittleEndian.Uint64(b)) }

// naive1 reads a ZVHD: all payloads are one stream.
func naive1(b []byte) ([]byte, error) {
	disk := make([]byte, u64(b[40:]))
	var stream []byte
	var blocks []int
	for at := 4096; at < len(b)-4096; {
		p, i, n, err := naiveRecord(b, at)
		if err != nil {
			return nil, err
		}
		stream, blocks, at = append(stream, p...), append(blocks, i), at+n
	}
	if len(blocks) == 0 {
		return disk, nil
	}
	r := flate.NewReader(bytes.NewReader(stream[2:]))
	block := make([]byte, 2097152)
	for _, i := range blocks {
		if _, err := io.ReadFull(r, block); err != nil {
			return nil, fmt.Errorf("block %d: %w", i, err)
		}
		if i*2097152 >= len(disk) {
			return nil, fmt.Errorf("block %d lies outside the disk", i)
		}
		copy(disk[i*2097152:], block)
	}
	return disk, nil
}

// naiveRecord is the payload, block number and length of the record at at.
func naiveRecord(b []byte, at int) (p []byte, block, length int, err error) {
	if at+48 > len(b) || string(b[at:at+12]) != "hwstream bg\x00" {
		return nil, 0, 0, fmt.Errorf("no record at %#x", at)
	}
	n := u32(b[at+12:])
	length = (48 + n + 4 + 4095) / 4096 * 4096
	if at+length > len(b)-4096 || string(b[at+length-4:at+length]) != "end\x00" {
		return nil, 0, 0, fmt.Errorf("the record at %#x does not end at %#x", at, at+length)
	}
	return b[at+48 : at+48+n], u32(b[at+16:]), length, nil
}

// naive2 reads a ZVHD2 by its bitmap and its index.
func naive2(b, h []byte) ([]byte, error) {
	disk := make([]byte, u64(h[40:]))
	index, bitmap := u64(h[96:]), u64(h[104:])
	rank := 0
	for i := range u32(h[92:]) {
		if b[bitmap+i/8]>>(i%8)&1 == 0 {
			continue
		}
		e := b[index+16*rank:]
		rank++
		p, block, n, err := naiveRecord(b, u64(e))
		if err != nil {
			return nil, err
		}
		if block != i || u32(e[8:]) != i || u32(e[12:]) != n {
			return nil, fmt.Errorf("entry %d is not of block %d", rank-1, i)
		}
		var r io.Reader = flate.NewReader(bytes.NewReader(p[min(2, len(p)):]))
		if h[141] == 1 {
			if r, err = zstd.NewReader(bytes.NewReader(p), zstd.WithDecoderConcurrency(1)); err != nil {
				return nil, err
			}
		}
		if got, err := io.ReadFull(r, disk[i*2097152:min((i+1)*2097152, len(disk))]); err != nil {
			return nil, fmt.Errorf("block %d, after %d bytes: %w", i, got, err)
		}
	}
	if rank != u32(h[136:]) {
		return nil, fmt.Errorf("%d bits are set, want %d", rank, u32(h[136:]))
	}
	return disk, nil
}

// rawFrame undoes a zstd frame of raw blocks by hand.
func rawFrame(p []byte) (out []byte, err error) {
	if u32(p) != 0xfd2fb528 || p[4] != 0xa0 {
		return nil, fmt.Errorf("frame begins with % x", p[:5])
	}
	size := u32(p[5:])
	p = p[9:]
	for last := false; !last; {
		h := int(p[0]) | int(p[1])<<8 | int(p[2])<<16
		if last = h&1 == 1; h>>1&3 != 0 {
			return nil, fmt.Errorf("a block that is not raw")
		}
		out, p = append(out, p[3:3+h>>3]...), p[3+h>>3:]
	}
	if len(out) != size || len(p) != 0 {
		return nil, fmt.Errorf("%d bytes of %d, %d behind them", len(out), size, len(p))
	}
	return out, nil
}

// checkHeaders holds the two or three header blocks of an image against the
// description.
func checkHeaders(t *testing.T, b []byte, size int) {
	t.Helper()
	h := b[len(b)-4096:]
	if !bytes.Equal(h, b[:4096]) {
		t.Error("the header at the end is not that at the start")
	}
	sum := 0
	for i, c := range h[:512] {
		if i < 64 || i > 67 {
			sum += int(c)
		}
	}
	if got := u32(h[64:]); got != int(^uint32(sum)) {
		t.Errorf("checksum %#x, want %#x", got, ^uint32(sum))
	}
	up := (size + 511) / 512 * 512
	for _, f := range []struct {
		what      string
		got, want int
	}{
		{"features", u32(h[8:]), 2},
		{"version", u32(h[12:]), 0x10000},
		{"data offset", u64(h[16:]), -1},
		{"creator", u32(h[28:]), 0x00706174},
		{"creator version", u32(h[32:]), 0x10004},
		{"original size", u64(h[40:]), up},
		{"current size", u64(h[48:]), (up + 1<<30 - 1) >> 30 << 30},
		{"type", u32(h[60:]), 4},
		{"UUID version", int(h[74] >> 4), 8},
	} {
		if f.got != f.want {
			t.Errorf("%s is %#x, want %#x", f.what, f.got, f.want)
		}
	}
	if string(h[:8]) != "z2strm\x00\x00" {
		if !bytes.Equal(h[87:], make([]byte, 4096-87)) {
			t.Error("fields of a ZVHD2 in a ZVHD")
		}
		return
	}
	blocks, used := (up+2097151)/2097152, 0
	for _, c := range b[u64(h[104:]) : u64(h[104:])+u32(h[116:])] {
		used += bits.OnesCount8(c)
	}
	for _, f := range []struct {
		what      string
		got, want int
	}{
		{"version", int(h[87]), 1},
		{"block size", u32(h[88:]), 2097152},
		{"blocks", u32(h[92:]), blocks},
		{"index", u64(h[96:]), 4096 + used*2101248 + 4096},
		{"bitmap", u64(h[104:]), u64(h[96:]) + u32(h[112:])},
		{"index length", u32(h[112:]), (used + 32767) / 32768 * 524288},
		{"bitmap length", u32(h[116:]), (blocks + 32767) / 32768 * 4096},
		{"index segment", u32(h[120:]), 524288},
		{"bitmap segment", u32(h[124:]), 4096},
		{"index segments", u32(h[128:]), (used + 32767) / 32768},
		{"bitmap segments", u32(h[132:]), (blocks + 32767) / 32768},
		{"blocks with data", u32(h[136:]), used},
		{"file length", len(b), u64(h[104:]) + u32(h[116:]) + 4096},
	} {
		if f.got != f.want {
			t.Errorf("%s is %#x, want %#x", f.what, f.got, f.want)
		}
	}
	if !bytes.Equal(b[u64(h[96:])-4096:u64(h[96:])], h) {
		t.Error("no copy of the header before the index")
	}
}
