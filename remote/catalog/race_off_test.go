//go:build !race

package catalog_test

// many is how many images the tests of scale make.
const many = 100_000
