package codec

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// Names of the properties of an image that a [Machine] is kept as. What one
// kind of package alone knows has a name that begins with the package's.
const (
	PropCPUs        = "cpus"
	PropMemory      = "memory_mib"
	PropFirmware    = "firmware"
	PropOS          = "os"
	PropOSVersion   = "os_version"
	PropArch        = "architecture"
	PropDescription = "description"
)

// Props are the properties of an image that say what m does, but for the name,
// the identity and the time, which an image has of its own. [Machine.SetProps]
// reads them back.
func (m *Machine) Props() map[string]string {
	props := make(map[string]string)
	put := func(name, value string) {
		if value != "" {
			props[name] = value
		}
	}
	if m.CPUs != 0 {
		put(PropCPUs, strconv.Itoa(m.CPUs))
	}
	if m.MemoryMiB != 0 {
		put(PropMemory, strconv.FormatInt(m.MemoryMiB, 10))
	}
	put(PropFirmware, m.Firmware)
	put(PropOS, m.OS)
	put(PropOSVersion, m.OSVersion)
	put(PropArch, m.Arch)
	put(PropDescription, m.Description)
	maps.Copy(props, m.Extra)
	return props
}

// SetProps takes what an image's properties say of a machine; of packages, what
// the one of that name alone knows. Other properties say nothing of it. A value
// that a machine cannot have is [ErrNotPossible].
func (m *Machine) SetProps(props map[string]string, pack string) (err error) {
	number := func(name string) (n int64) {
		if s := props[name]; s != "" && err == nil {
			if n, err = strconv.ParseInt(s, 10, 64); err != nil || n < 0 {
				err = fmt.Errorf("%w: property %s is %.40q, not a number", ErrNotPossible, name, s)
			}
		}
		return n
	}
	cpus := number(PropCPUs)
	m.MemoryMiB = number(PropMemory)
	if err != nil {
		return err
	}
	m.CPUs = int(min(cpus, MaxCPUs+1)) // too many stay too many
	m.Firmware, m.OS, m.OSVersion = strings.ToLower(props[PropFirmware]), props[PropOS], props[PropOSVersion]
	m.Arch, m.Description = props[PropArch], props[PropDescription]
	for name, value := range props {
		if strings.HasPrefix(name, pack+".") {
			if m.Extra == nil {
				m.Extra = make(map[string]string)
			}
			m.Extra[name] = value
		}
	}
	if err := m.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotPossible, err)
	}
	return nil
}
