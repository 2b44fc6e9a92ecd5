package codectest

import (
	"os"

	"imagefs/codec"
)

// Thorough asks for all damage that the tests know; a soak does.
var Thorough = os.Getenv("IMAGEFS_HOSTILE_FLIPS") != ""

// Thin is how often of n one check of a sample is made: each time, but under the
// race detector, where decoding is slow, every n-th, unless a soak asks for all.
func Thin(n int) int {
	if !raceEnabled || Thorough {
		return 1
	}
	return n
}

// readsOf is how many of n reads at random are made of d. Each decodes a block,
// and those of MiB take the race detector too long.
func readsOf(d codec.Disk, n int) int {
	n /= slow
	if c, ok := d.(codec.Coded); ok && c.Unit() >= mib {
		n /= Thin(6)
	}
	return n
}
