package codec

import "encoding/binary"

// adlerMod is the largest prime below 2^16 (RFC 1950, section 8).
const adlerMod = 65521

// Adler32 is the checksum of a zlib stream of p, as hash/adler32 has it, about
// three times as fast: it is what reading a view costs beside copying.
//
// With the bytes of a piece numbered from 0, the two sums grow by
//
//	s1 += sum of b[i]
//	s2 += len*s1 + sum of (len-i)*b[i]
//
// Eight bytes at a time are added to eight lanes of 16 bits, the even ones in
// a0 and the odd ones in a1. c0 and c1 sum up what the lanes held before each
// step: how often a byte in a lane counts for the steps that follow it. What
// is left is its place within its own eight, a weight from 8 to 1 per lane.
func Adler32(p []byte) uint32 {
	const (
		piece = 128 // 16 steps: a lane of c is below 255*(0+1+..+15) = 30,600
		even  = 0x00ff00ff00ff00ff
		pairs = 0x0000ffff0000ffff
		// A product with one of these has, in its top lane, the lanes of
		// the other factor summed with weights; none overflows into it.
		ones = 0x0001_0001_0001_0001
		w432 = 0x0004_0003_0002_0001 // 4, 3, 2, 1 for lanes 0 to 3
		w321 = 0x0003_0002_0001_0000
		top  = 48
	)
	s1, s2 := uint64(1), uint64(0)
	for len(p) >= piece {
		// The sums stay far below 64 bits for 4 KiB.
		q := p[:min(len(p), 4096)&^(piece-1)]
		p = p[len(q):]
		for ; len(q) >= piece; q = q[piece:] {
			var a0, a1, c0, c1 uint64
			for i := 0; i < piece; i += 32 {
				w := q[i : i+32 : i+32]
				x := binary.LittleEndian.Uint64(w)
				c0, c1 = c0+a0, c1+a1
				a0, a1 = a0+x&even, a1+x>>8&even
				x = binary.LittleEndian.Uint64(w[8:])
				c0, c1 = c0+a0, c1+a1
				a0, a1 = a0+x&even, a1+x>>8&even
				x = binary.LittleEndian.Uint64(w[16:])
				c0, c1 = c0+a0, c1+a1
				a0, a1 = a0+x&even, a1+x>>8&even
				x = binary.LittleEndian.Uint64(w[24:])
				c0, c1 = c0+a0, c1+a1
				a0, a1 = a0+x&even, a1+x>>8&even
			}
			c := c0&pairs + c0>>16&pairs + c1&pairs + c1>>16&pairs
			c = c&0xffffffff + c>>32
			odd := a1 * ones >> top
			// Weights 8, 6, 4, 2 are twice 4, 3, 2, 1; 7, 5, 3, 1 are
			// twice 3, 2, 1, 0 and one.
			s2 += piece*s1 + 8*c + 2*(a0*w432>>top+a1*w321>>top) + odd
			s1 += a0*ones>>top + odd
		}
		s1 %= adlerMod
		s2 %= adlerMod
	}
	for _, b := range p {
		s1 += uint64(b)
		s2 += s1
	}
	return uint32(s2%adlerMod<<16 | s1%adlerMod)
}
