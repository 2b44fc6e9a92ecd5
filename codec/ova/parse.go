package ova

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"

	"imagefs/codec"
)

// file is one entry of the references.
type file struct {
	id, href string
	size     int64 // -1: not said
}

// disk is one disk of the machine.
type disk struct {
	id, fileRef string
	capacity    int64
}

// envelope is what is read of a descriptor.
type envelope struct {
	files   []file
	disks   []disk // as they stand on their controllers
	machine codec.Machine
}

func parseEnvelope(b []byte) (*envelope, error) {
	root, err := parseXML(b)
	if err != nil {
		return nil, err
	}
	if root.name != "Envelope" {
		return nil, codec.Corruptf("descriptor is an xml of %.80q, want %q", root.name, "Envelope")
	}
	if root.space != nsOVF && root.space != nsOVF2 {
		return nil, codec.Unsupportedf("namespace of the envelope %.200q, want %q or %q", root.space, nsOVF, nsOVF2)
	}
	e := new(envelope)
	if err := e.readFiles(root); err != nil {
		return nil, err
	}
	if err := e.readDisks(root); err != nil {
		return nil, err
	}
	systems := root.all("VirtualSystem")
	for _, c := range root.all("VirtualSystemCollection") {
		systems = append(systems, c.all("VirtualSystem")...)
		if len(c.all("VirtualSystemCollection")) > 0 {
			return nil, codec.Unsupportedf("collections of machines within one another")
		}
	}
	if len(systems) != 1 {
		return nil, codec.Unsupportedf("%d machines in one package, want 1", len(systems))
	}
	vs := systems[0]
	e.readTexts(vs)
	if hw := vs.all("VirtualHardwareSection"); len(hw) > 0 {
		// Further sections are alternatives of the first.
		if err := e.readHardware(hw[0], configuration(root)); err != nil {
			return nil, err
		}
	}
	if vbox := vs.vbox("Machine"); vbox != nil && e.machine.Firmware == "" {
		e.machine.Firmware = vboxFirmware(vbox)
	}
	return e, nil
}

func (e *envelope) readFiles(root *node) error {
	seen := map[string]bool{}
	for _, n := range root.one("References").all("File") {
		f := file{id: n.attr("id"), href: n.attr("href"), size: -1}
		if c := n.attr("compression"); c != "" && c != "identity" {
			return codec.Unsupportedf("file %.200q is compressed (%.40q): unpack it first", f.href, c)
		}
		if c := n.attr("chunkSize"); c != "" {
			return codec.Unsupportedf("file %.200q is split in chunks of %.40q", f.href, c)
		}
		if f.id == "" || f.href == "" {
			return codec.Corruptf("file with the id %.80q and the name %.200q: one is missing", f.id, f.href)
		}
		if s := n.attr("size"); s != "" {
			v, ok := number(s, codec.MaxSize)
			if !ok {
				return codec.Corruptf("size of file %.200q is %.40q", f.href, s)
			}
			f.size = v
		}
		if seen[f.id] {
			return codec.Corruptf("two files have the id %.80q", f.id)
		}
		seen[f.id] = true
		e.files = append(e.files, f)
	}
	return nil
}

func (e *envelope) readDisks(root *node) error {
	seen, used := map[string]bool{}, map[string]bool{}
	for _, s := range root.all("DiskSection") {
		for _, n := range s.all("Disk") {
			d := disk{id: n.attr("diskId"), fileRef: n.attr("fileRef")}
			if p := n.attr("parentRef"); p != "" {
				return codec.Unsupportedf("disk %.80q is a delta of the disk %.80q", d.id, p)
			}
			if d.fileRef == "" {
				return codec.Unsupportedf("disk %.80q has no file: it is to be made empty, with a capacity of %.40q", d.id, n.attr("capacity"))
			}
			if d.id == "" || seen[d.id] || used[d.fileRef] {
				return codec.Corruptf("disk %.80q of the file %.80q: no id, or the id or the file is another's", d.id, d.fileRef)
			}
			seen[d.id], used[d.fileRef] = true, true
			// A capacity may be a property's name, and is a remark only.
			if c, err := quantity(n.attr("capacity"), n.attr("capacityAllocationUnits")); err == nil {
				d.capacity = c
			}
			e.disks = append(e.disks, d)
		}
	}
	if n := len(e.disks); n == 0 || n > maxMembers {
		return codec.Unsupportedf("%d disks, want 1 to %d", n, maxMembers)
	}
	return nil
}

// readTexts reads names, annotation and guest system.
func (e *envelope) readTexts(vs *node) {
	m := &e.machine
	if m.Name = vs.line("Name"); m.Name == "" {
		m.Name = vs.attr("id")
	}
	m.Description = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(vs.one("AnnotationSection").one("Annotation").text)
	all := vs.all("OperatingSystemSection")
	if len(all) == 0 {
		return
	}
	n := all[0]
	osType := n.attrIn(nsVMW, "osType")
	id, ok := number(n.attr("id"), 1<<16-1)
	m.OS, m.OSVersion = n.line("Description"), n.attr("version")
	if g, _ := byID(int(id)); m.OS == "" && g != nil {
		m.OS = g.name
	}
	if ok {
		m.Arch = arch(int(id), osType)
		m.Extra = map[string]string{"ova.os_id": strconv.FormatInt(id, 10)}
		if osType != "" {
			m.Extra["ova.os_type"] = osType
		}
	}
	if v := n.vbox("OSType"); v != nil && strings.HasSuffix(strings.TrimSpace(v.text), "_arm64") {
		m.Arch = "aarch64"
	}
}

// vbox is the first child of a name in the namespace of VirtualBox.
func (n *node) vbox(name string) *node {
	for _, k := range n.kids {
		if k.name == name && k.space == nsVBox {
			return k
		}
	}
	return nil
}

// vboxFirmware reads Hardware/Firmware, whose namespace differs by version.
func vboxFirmware(machine *node) string {
	find := func(n *node, name string) *node {
		for _, k := range n.kids {
			if k.name == name {
				return k
			}
		}
		return &node{}
	}
	switch kind := find(find(machine, "Hardware"), "Firmware").attr("type"); {
	case strings.HasPrefix(kind, "EFI"):
		return "uefi"
	case kind == "BIOS":
		return "bios"
	}
	return ""
}

// configuration is the name of the deployment that is taken where nobody asks:
// the one that says so, else the first.
func configuration(root *node) string {
	all := root.one("DeploymentOptionSection").all("Configuration")
	for _, c := range all {
		if c.attr("default") == "true" || c.attr("default") == "1" {
			return c.attr("id")
		}
	}
	if len(all) > 0 {
		return all[0].attr("id")
	}
	return ""
}

// place is where a disk stands: controllers in the order of their items.
type place struct{ controller, address int64 }

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.controller, q.controller), cmp.Compare(p.address, q.address))
}

// nowhere is behind every other place.
var nowhere = place{math.MaxInt64, math.MaxInt64}

// readHardware reads processors, memory, firmware and the places of disks.
func (e *envelope) readHardware(hw *node, config string) error {
	items := make([]*node, 0, len(hw.kids))
	order := map[string]int64{} // of controllers, by instance
	for _, n := range hw.kids {
		if n.name != "Item" && n.name != "StorageItem" && n.name != "EthernetPortItem" {
			continue
		}
		// A bound is a limit of what may be chosen, not a device.
		if n.attr("bound") != "" || n.attr("configuration") != "" && !slices.Contains(strings.Fields(n.attr("configuration")), config) {
			continue
		}
		if id := n.line("InstanceID"); id != "" {
			order[id] = int64(len(items))
		}
		items = append(items, n)
	}
	places := map[string]place{} // of disks, by id
	for _, n := range items {
		t, _ := number(n.line("ResourceType"), math.MaxInt32)
		var err error
		switch t {
		case typeCPU:
			err = e.readCPUs(n)
		case typeMemory:
			err = e.readMemory(n)
		case typeDisk:
			err = e.readPlace(n, order, places)
		}
		if err != nil {
			return err
		}
	}
	taken := map[place]string{}
	for _, d := range e.disks {
		p, ok := places[d.id]
		if !ok || p.controller == nowhere.controller || p.address == nowhere.address {
			continue
		}
		if o, ok := taken[p]; ok {
			return codec.Corruptf("disks %.80q and %.80q stand at one address, %d", o, d.id, p.address)
		}
		taken[p] = d.id
	}
	at := func(d disk) place {
		if p, ok := places[d.id]; ok {
			return p
		}
		return nowhere
	}
	slices.SortStableFunc(e.disks, func(a, b disk) int { return at(a).compare(at(b)) })
	for _, n := range hw.kids {
		if n.space == nsVMW && n.name == "Config" && n.attrIn(nsVMW, "key") == "firmware" {
			e.machine.Firmware = map[string]string{"efi": "uefi", "bios": "bios"}[n.attrIn(nsVMW, "value")]
		}
	}
	return nil
}

func (e *envelope) readCPUs(n *node) error {
	if e.machine.CPUs != 0 {
		return nil // the first holds
	}
	v, ok := number(n.line("VirtualQuantity"), codec.MaxCPUs)
	if !ok {
		return codec.Unsupportedf("%.40q processors, up to %d are known", n.line("VirtualQuantity"), codec.MaxCPUs)
	}
	e.machine.CPUs = int(v)
	return nil
}

func (e *envelope) readMemory(n *node) error {
	if e.machine.MemoryMiB != 0 {
		return nil
	}
	u := n.line("AllocationUnits")
	if u == "" {
		u = "byte * 2^20" // as all readers take it
	}
	v, err := quantity(n.line("VirtualQuantity"), u)
	if err != nil {
		return err
	}
	e.machine.MemoryMiB = codec.Ceil(v, 1<<20)
	return nil
}

// readPlace notes where the item of a disk puts it. One that holds a file, or
// nothing, is no disk of the section.
func (e *envelope) readPlace(n *node, order map[string]int64, places map[string]place) error {
	host := strings.TrimPrefix(n.line("HostResource"), "ovf:")
	id, ok := strings.CutPrefix(host, "/disk/")
	if !ok {
		if strings.HasPrefix(host, "/file/") {
			return codec.Unsupportedf("a hard disk that is the file %.200q, not a disk of the descriptor", host)
		}
		return nil
	}
	if !slices.ContainsFunc(e.disks, func(d disk) bool { return d.id == id }) {
		return codec.Corruptf("item of the disk %.80q, which the descriptor does not have", id)
	}
	if _, ok := places[id]; ok {
		return codec.Corruptf("two items of the disk %.80q", id)
	}
	p := nowhere
	if c, ok := order[n.line("Parent")]; ok {
		p.controller = c
	}
	if a, ok := number(n.line("AddressOnParent"), math.MaxInt32); ok {
		p.address = a
	}
	places[id] = p
	return nil
}
