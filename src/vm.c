/* SPDX-License-Identifier: BSD-2-Clause */
#include <config.h>

#include "vm.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libxml/parser.h>
#include <libxml/parserInternals.h>
#include <uuid/uuid.h>

int vm_no_memory(struct img_err *err)
{
	return img_err_set(err, IMG_IO, "out of memory");
}

/* ---- the tree ---- */

static bool ours(const xmlNode *n)
{
	return !n->ns || !n->ns->href || !strcmp((const char *)n->ns->href, "") ||
	       !strcmp((const char *)n->ns->href, VM_NS);
}

xmlNode *vm_child(const xmlNode *parent, const char *name)
{
	for (xmlNode *n = parent ? parent->children : NULL; n; n = n->next)
		if (n->type == XML_ELEMENT_NODE && ours(n) && !strcmp((const char *)n->name, name))
			return n;
	return NULL;
}

xmlNode *vm_next(const xmlNode *node)
{
	for (xmlNode *n = node->next; n; n = n->next)
		if (n->type == XML_ELEMENT_NODE && ours(n) && xmlStrEqual(n->name, node->name))
			return n;
	return NULL;
}

static char *from_xml(xmlChar *x)
{
	char *s = x ? strdup((const char *)x) : NULL;

	xmlFree(x);
	return s;
}

char *vm_text(const xmlNode *node)
{
	return node ? from_xml(xmlNodeGetContent(node)) : NULL;
}

char *vm_attr(const xmlNode *node, const char *name)
{
	return node ? from_xml(xmlGetNoNsProp(node, (const xmlChar *)name)) : NULL;
}

/* The child, made at the end of PARENT when it is not there. */
static xmlNode *need_child(xmlNode *parent, const char *name, struct img_err *err)
{
	xmlNode *n = vm_child(parent, name);

	if (!n)
		n = xmlNewChild(parent, NULL, (const xmlChar *)name, NULL);
	if (!n)
		vm_no_memory(err);
	return n;
}

bool vm_xml_clean(const char *text)
{
	if (!xmlCheckUTF8((const unsigned char *)text))
		return false;
	for (; *text; text++)
		if ((unsigned char)*text < ' ' && !strchr("\t\n\r", *text))
			return false;
	return true;
}

static int need_clean(const char *text, struct img_err *err)
{
	if (vm_xml_clean(text))
		return 0;
	return img_err_set(err, IMG_DATA,
			   "\"%s\": not UTF-8, or with a control character: XML cannot hold it",
			   text);
}

int vm_set_text(xmlNode *parent, const char *child, const char *text, struct img_err *err)
{
	xmlNode *n, *t;

	if (need_clean(text, err) < 0)
		return -1;
	n = need_child(parent, child, err);
	if (!n)
		return -1;
	/* xmlNodeSetContent() would take entity references in the text; a text node does not. */
	xmlNodeSetContent(n, NULL);
	t = xmlNewDocText(n->doc, (const xmlChar *)text);
	if (!t || !xmlAddChild(n, t))
		return vm_no_memory(err);
	return 0;
}

int vm_set_attr(xmlNode *node, const char *name, const char *value, struct img_err *err)
{
	if (need_clean(value, err) < 0)
		return -1;
	if (!xmlSetProp(node, (const xmlChar *)name, (const xmlChar *)value))
		return vm_no_memory(err);
	return 0;
}

/* ---- parsing ---- */

/* No document of ours has a DTD, and entities are where hostile ones hide. */
static void refuse_dtd(void *ctx, const xmlChar *name, const xmlChar *ext, const xmlChar *sys)
{
	xmlParserCtxt *ctxt = ctx;

	(void)name;
	(void)ext;
	(void)sys;
	*(bool *)ctxt->_private = true;
	xmlStopParser(ctxt);
}

static int parse_tree(struct vm_doc *vm, const char *buf, size_t len, const char *what,
		      struct img_err *err)
{
	xmlParserCtxt *ctxt = xmlNewParserCtxt();
	bool dtd = false;
	int ret = -1;

	if (!ctxt)
		return vm_no_memory(err);
	ctxt->_private = &dtd;
	ctxt->sax->internalSubset = refuse_dtd;
	vm->doc = xmlCtxtReadMemory(ctxt, buf, (int)len, NULL, NULL,
				    XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING |
					    XML_PARSE_NOCDATA);
	if (dtd) {
		img_err_set(err, IMG_DATA, "%s: a document type (DTD) is not accepted", what);
	} else if (!vm->doc) {
		const xmlError *e = xmlCtxtGetLastError(ctxt);
		size_t n = e && e->message ? strcspn(e->message, "\n") : 0;

		img_err_set(err, IMG_DATA, "%s: not well-formed XML: line %d: %.*s", what,
			    e ? e->line : 0, (int)n, n ? e->message : "");
	} else {
		ret = 0;
	}
	if (ret < 0) {
		xmlFreeDoc(vm->doc);
		vm->doc = NULL;
	}
	xmlFreeParserCtxt(ctxt);
	return ret;
}

static int find_domain(struct vm_doc *vm, const char *what, struct img_err *err)
{
	xmlNode *root = xmlDocGetRootElement(vm->doc);
	char *version;

	if (root && ours(root) && !strcmp((const char *)root->name, "domain")) {
		vm->domain = root;
		return 0;
	}
	if (!root || !ours(root) || strcmp((const char *)root->name, "qsm-vm") != 0)
		return img_err_set(err, IMG_DATA,
				   "%s: neither a VM document (<qsm-vm>) nor a libvirt <domain>",
				   what);
	version = vm_attr(root, "version");
	if (!version || strcmp(version, "1") != 0) {
		img_err_set(err, IMG_DATA, "%s: VM document of version %s, only 1 is known", what,
			    version ? version : "(none)");
		free(version);
		return -1;
	}
	free(version);
	vm->wrapper = root;
	vm->domain = vm_child(root, "domain");
	if (!vm->domain)
		return img_err_set(err, IMG_DATA, "%s: the VM document holds no <domain>", what);
	return 0;
}

int vm_parse(struct vm_doc *vm, const char *buf, size_t len, const char *what, struct img_err *err)
{
	memset(vm, 0, sizeof *vm);
	if (len > VM_DOC_MAX)
		return img_err_set(err, IMG_DATA, "%s: longer than %u bytes", what, VM_DOC_MAX);
	if (parse_tree(vm, buf, len, what, err) < 0)
		return -1;
	if (find_domain(vm, what, err) < 0 || vm_decode(vm, err) < 0) {
		vm_free(vm);
		return -1;
	}
	return 0;
}

static void free_decoded(struct vm_doc *vm)
{
	for (size_t i = 0; i < vm->ndisks; i++) {
		free(vm->disks[i].target);
		free(vm->disks[i].bus);
		free(vm->disks[i].source);
		free(vm->disks[i].serial);
	}
	for (size_t i = 0; i < vm->nnics; i++) {
		free(vm->nics[i].mac);
		free(vm->nics[i].type);
		free(vm->nics[i].model);
		free(vm->nics[i].network);
	}
	free(vm->disks);
	free(vm->nics);
	free(vm->name);
	free(vm->uuid);
	vm->disks = NULL;
	vm->nics = NULL;
	vm->ndisks = vm->nnics = 0;
	vm->name = vm->uuid = NULL;
}

void vm_free(struct vm_doc *vm)
{
	free_decoded(vm);
	xmlFreeDoc(vm->doc);
	memset(vm, 0, sizeof *vm);
}

/* ---- decoding ---- */

bool vm_name_ok(const char *name)
{
	size_t len = strlen(name);

	/* It becomes the name of a folder; hidden ones are being made or removed. */
	return len > 0 && len <= 200 && name[0] != '.' && !strchr(name, '/') && vm_xml_clean(name);
}

bool vm_uuid_ok(const char *uuid)
{
	uuid_t u;

	return strlen(uuid) == 36 && uuid_parse(uuid, u) == 0;
}

static void lower(char *s)
{
	for (; *s; s++)
		*s = (char)tolower((unsigned char)*s);
}

bool vm_word_ok(const char *s, const char *more, size_t max)
{
	size_t len = strlen(s);

	if (len == 0 || len > max || *s == '-' || *s == '.')
		return false;
	for (; *s; s++)
		if (!isascii((unsigned char)*s) ||
		    (!isalnum((unsigned char)*s) && !strchr(more, *s)))
			return false;
	return true;
}

static bool mac_ok(const char *s)
{
	if (strlen(s) != 17)
		return false;
	for (int i = 0; i < 17; i++)
		if (i % 3 == 2 ? s[i] != ':' : !isxdigit((unsigned char)s[i]))
			return false;
	return true;
}

int vm_number(const char *s, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(s, &end, 10);
	return isdigit((unsigned char)*s) && !errno && end[strspn(end, " \t\r\n")] == '\0' ? 0 : -1;
}

static int boot_order(const xmlNode *device, uint64_t *out, struct img_err *err)
{
	char *s = vm_attr(vm_child(device, "boot"), "order");

	*out = 0;
	if (s && (vm_number(s, out) < 0 || *out == 0 || *out > 10000)) {
		img_err_set(err, IMG_DATA, "boot order \"%s\" is not a number from 1 to 10000", s);
		free(s);
		return -1;
	}
	free(s);
	return 0;
}

char *vm_attr_or(const xmlNode *node, const char *name, const char *otherwise)
{
	char *s = vm_attr(node, name);

	return s ? s : strdup(otherwise);
}

static int decode_disk(struct vm_disk *d, xmlNode *node, struct img_err *err)
{
	const xmlNode *target = vm_child(node, "target"), *source = vm_child(node, "source");

	d->node = node;
	d->target = vm_attr(target, "dev");
	d->bus = vm_attr_or(target, "bus", "virtio");
	d->source = vm_attr(source, "file");
	if (!d->source)
		d->source = vm_attr(source, "dev");
	d->serial = vm_text(vm_child(node, "serial"));
	d->readonly = vm_child(node, "readonly") != NULL;
	if (!d->target || !vm_word_ok(d->target, "-_", 32))
		return img_err_set(
			err, IMG_DATA,
			"a disk's <target dev> is %s: 1 to 32 letters, digits, - and _ are wanted",
			d->target ? d->target : "missing");
	if (!d->bus)
		return vm_no_memory(err);
	return boot_order(node, &d->boot, err);
}

static int decode_nic(struct vm_nic *n, xmlNode *node, struct img_err *err)
{
	const xmlNode *source = vm_child(node, "source");

	n->node = node;
	n->mac = vm_attr(vm_child(node, "mac"), "address");
	n->type = vm_attr_or(node, "type", "user");
	n->model = vm_attr_or(vm_child(node, "model"), "type", "virtio");
	n->network = vm_attr(source, "network");
	if (!n->network)
		n->network = vm_attr(source, "bridge");
	if (!n->type || !n->model)
		return vm_no_memory(err);
	if (n->mac && !mac_ok(n->mac))
		return img_err_set(err, IMG_DATA, "\"%s\" is not a MAC address", n->mac);
	if (n->mac)
		lower(n->mac);
	if (!vm_word_ok(n->model, "-_", 32))
		return img_err_set(err, IMG_DATA, "network card model \"%s\" is not a name",
				   n->model);
	return boot_order(node, &n->boot, err);
}

bool vm_is_disk(const xmlNode *n)
{
	char *device = vm_attr(n, "device");
	bool yes = !device || !strcmp(device, "disk");

	free(device);
	return yes;
}

static int decode_devices(struct vm_doc *vm, struct img_err *err)
{
	const xmlNode *devices = vm_child(vm->domain, "devices");

	vm->disks = calloc(VM_MAX_DEVICES, sizeof *vm->disks);
	vm->nics = calloc(VM_MAX_DEVICES, sizeof *vm->nics);
	if (!vm->disks || !vm->nics)
		return vm_no_memory(err);
	for (xmlNode *n = vm_child(devices, "disk"); n; n = vm_next(n)) {
		if (!vm_is_disk(n))
			continue;
		if (vm->ndisks == VM_MAX_DEVICES)
			return img_err_set(err, IMG_DATA, "more than %d disks", VM_MAX_DEVICES);
		if (decode_disk(&vm->disks[vm->ndisks++], n, err) < 0)
			return -1;
		for (size_t i = 0; i + 1 < vm->ndisks; i++)
			if (!strcmp(vm->disks[i].target, vm->disks[vm->ndisks - 1].target))
				return img_err_set(err, IMG_DATA, "two disks have the target %s",
						   vm->disks[i].target);
	}
	for (xmlNode *n = vm_child(devices, "interface"); n; n = vm_next(n)) {
		if (vm->nnics == VM_MAX_DEVICES)
			return img_err_set(err, IMG_DATA, "more than %d network cards",
					   VM_MAX_DEVICES);
		if (decode_nic(&vm->nics[vm->nnics++], n, err) < 0)
			return -1;
	}
	return 0;
}

int vm_decode(struct vm_doc *vm, struct img_err *err)
{
	free_decoded(vm);
	vm->name = vm_text(vm_child(vm->domain, "name"));
	vm->uuid = vm_text(vm_child(vm->domain, "uuid"));
	if (vm->name && !vm_name_ok(vm->name))
		return img_err_set(
			err, IMG_DATA,
			"\"%s\" cannot be a VM's name: 1 to 200 bytes, no slash, no dot in front",
			vm->name);
	if (vm->uuid && !vm_uuid_ok(vm->uuid))
		return img_err_set(err, IMG_DATA, "\"%s\" is not a UUID", vm->uuid);
	if (vm->uuid)
		lower(vm->uuid);
	return decode_devices(vm, err);
}

/* ---- changes ---- */

int vm_set_source(struct vm_disk *disk, const char *file, struct img_err *err)
{
	xmlNode *source = need_child(disk->node, "source", err);

	if (!source)
		return -1;
	xmlUnsetProp(source, (const xmlChar *)"dev");
	if (vm_set_attr(disk->node, "type", "file", err) < 0 ||
	    vm_set_attr(source, "file", file, err) < 0)
		return -1;
	free(disk->source);
	disk->source = strdup(file);
	return disk->source ? 0 : vm_no_memory(err);
}

int vm_set_network(struct vm_nic *nic, const char *network, struct img_err *err)
{
	bool bridge = !strcmp(nic->type, "bridge");
	xmlNode *source = need_child(nic->node, "source", err);

	if (!source)
		return -1;
	if (!bridge && vm_set_attr(nic->node, "type", "network", err) < 0)
		return -1;
	if (vm_set_attr(source, bridge ? "bridge" : "network", network, err) < 0)
		return -1;
	free(nic->network);
	nic->network = strdup(network);
	if (!bridge) {
		free(nic->type);
		nic->type = strdup("network");
	}
	return nic->network && nic->type ? 0 : vm_no_memory(err);
}

static int complete_machine(struct vm_doc *vm, const char *machine, struct img_err *err)
{
	xmlNode *os = need_child(vm->domain, "os", err), *type, *cpu;
	char *have;

	if (!os)
		return -1;
	type = vm_child(os, "type");
	if (!type) {
		if (vm_set_text(os, "type", "hvm", err) < 0)
			return -1;
		type = vm_child(os, "type");
	}
	have = vm_attr(type, "machine");
	if ((machine || !have) &&
	    vm_set_attr(type, "machine", machine ? machine : VM_MACHINE, err) < 0) {
		free(have);
		return -1;
	}
	free(have);
	if (vm_child(vm->domain, "cpu"))
		return 0;
	cpu = need_child(vm->domain, "cpu", err);
	if (!cpu || vm_set_attr(cpu, "mode", "custom", err) < 0)
		return -1;
	return vm_set_text(cpu, "model", VM_CPU, err);
}

int vm_complete(struct vm_doc *vm, const char *machine, struct img_err *err)
{
	uuid_t u;

	uuid_generate(u);
	if (!vm->uuid) {
		char s[37];

		uuid_unparse_lower(u, s);
		if (vm_set_text(vm->domain, "uuid", s, err) < 0)
			return -1;
	} else {
		uuid_parse(vm->uuid, u);
	}
	for (size_t i = 0; i < vm->nnics; i++) {
		xmlNode *mac;
		char s[18];

		if (vm->nics[i].mac)
			continue;
		/*
		 * In QEMU's range; the rest from the UUID, so that a second reading gives the
		 * same.
		 */
		snprintf(s, sizeof s, "52:54:00:%02x:%02x:%02x", u[13], u[14],
			 (unsigned)(u[15] + i) & 0xff);
		mac = need_child(vm->nics[i].node, "mac", err);
		if (!mac || vm_set_attr(mac, "address", s, err) < 0)
			return -1;
	}
	if (complete_machine(vm, machine, err) < 0)
		return -1;
	return vm_decode(vm, err);
}

xmlChar *vm_domain_text(const struct vm_doc *vm, int *len, struct img_err *err)
{
	xmlDoc *doc = xmlNewDoc((const xmlChar *)"1.0");
	xmlNode *copy = doc ? xmlDocCopyNode(vm->domain, doc, 1) : NULL;
	xmlChar *text = NULL;

	if (copy) {
		xmlDocSetRootElement(doc, copy);
		/* xmlns="" says nothing once the wrapper is gone; no element refers to it. */
		if (!copy->ns && copy->nsDef && !copy->nsDef->prefix) {
			xmlNs *ns = copy->nsDef;

			copy->nsDef = ns->next;
			xmlFreeNs(ns);
		}
		xmlDocDumpFormatMemoryEnc(doc, &text, len, "UTF-8", 0);
	}
	xmlFreeDoc(doc);
	if (!text)
		vm_no_memory(err);
	return text;
}
