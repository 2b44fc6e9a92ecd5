//go:build race

package catalog_test

// many is how many images the tests of scale make: few, for the race detector
// makes each cost ten times as much.
const many = 10_000
