package fs

import (
	"fmt"
	"os/exec"
	"strings"
)

// fusermount unmounts path by the helper that users without privilege have.
func fusermount(path string) error {
	out, err := exec.Command("fusermount3", "-uz", "--", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
