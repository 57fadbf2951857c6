/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What vm-export and vm-import share: the VM document (a libvirt domain, alone or inside <qsm-vm>),
 * and calls of a hypervisor adapter. The XML tree stays the authority: what is not
 * understood here is carried along unchanged.
 */
#ifndef VM_H
#define VM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>
#include <libxml/tree.h>

#include "err.h"

#define VM_NS "urn:qsm-tools:vm:1"
#define VM_DOC_MAX (4u << 20)	  /* bytes of a document */
#define VM_OUTPUT_MAX (16u << 20) /* bytes an adapter may print */
#define VM_MAX_DEVICES 256
/* What a domain that does not say gets. */
#define VM_MACHINE "pc-q35-7.2"
#define VM_CPU "qemu64"

struct vm_disk {
	xmlNode *node;
	char *target; /* letters, digits, '-', '_'; fit for a file name */
	char *bus;
	char *source; /* NULL: none */
	char *serial;
	bool readonly;
	uint64_t boot; /* 0: not in the boot order */
};

struct vm_nic {
	xmlNode *node;
	char *mac; /* lower case; NULL: none given */
	char *type;
	char *model;
	char *network; /* name of the network or bridge, NULL */
	uint64_t boot;
};

struct vm_doc {
	xmlDoc *doc;
	xmlNode *domain;
	xmlNode *wrapper;  /* <qsm-vm>, NULL for a plain domain */
	char *name, *uuid; /* NULL: none given */
	struct vm_disk *disks;
	size_t ndisks;
	struct vm_nic *nics;
	size_t nnics;
};

/* -- vm.c: the document -- */

/* Parses a document without network, DTD or entities, and decodes what vm_doc names. */
int vm_parse(struct vm_doc *vm, const char *buf, size_t len, const char *what, struct img_err *err);
/* Decodes again after a change of the tree. */
int vm_decode(struct vm_doc *vm, struct img_err *err);
void vm_free(struct vm_doc *vm);

/*
 * The first child element of that name in the domain's (no) namespace or the wrapper's; NULL is
 * fine.
 */
xmlNode *vm_child(const xmlNode *parent, const char *name);
/* Text of the element, or attribute; malloc'd, NULL when absent. */
char *vm_text(const xmlNode *node);
char *vm_attr(const xmlNode *node, const char *name);
/* The attribute, or a copy of OTHERWISE. */
char *vm_attr_or(const xmlNode *node, const char *name, const char *otherwise);
/* The next sibling with the same name. */
xmlNode *vm_next(const xmlNode *node);
/* Whether a <disk> is one that can be written and moved, no CD-ROM or floppy. */
bool vm_is_disk(const xmlNode *node);
/* Makes the child if it is not there, and sets its text or attribute. */
int vm_set_text(xmlNode *parent, const char *child, const char *text, struct img_err *err);
int vm_set_attr(xmlNode *node, const char *name, const char *value, struct img_err *err);
/* TEXT can stand in XML 1.0 (UTF-8, no control characters but tab and newline). */
bool vm_xml_clean(const char *text);
bool vm_name_ok(const char *name);
bool vm_uuid_ok(const char *uuid);
/* Letters, digits and the characters of MORE; not empty, not longer than MAX. */
bool vm_word_ok(const char *s, const char *more, size_t max);
/* A decimal number that fits; only white space may follow. */
int vm_number(const char *s, uint64_t *out);
int vm_no_memory(struct img_err *err);

int vm_set_source(struct vm_disk *disk, const char *file, struct img_err *err);
int vm_set_network(struct vm_nic *nic, const char *network, struct img_err *err);
/* Pins what a move must not leave to chance: machine type, CPU, MACs and a UUID. */
int vm_complete(struct vm_doc *vm, const char *machine, struct img_err *err);

/* The domain alone, as text (xmlFree it). */
xmlChar *vm_domain_text(const struct vm_doc *vm, int *len, struct img_err *err);

/* -- vm_json.c -- */

/* The domain as an adapter needs it: one flat JSON object. */
json_t *vm_json(const struct vm_doc *vm, struct img_err *err);

/* -- vm_adapter.c -- */

/* The whole of FD, at most MAX bytes, with a NUL after it that *LEN does not count. */
int vm_read_all(int fd, size_t max, char **buf, size_t *len, const char *what, struct img_err *err);

/*
 * Runs hv-HYPERVISOR ARGV[1…] (argv[0] is filled in), found beside this program, in
 * its libexec folder or in PATH, with the INLEN bytes of IN (may be NULL: /dev/null) as stdin. *OUT
 * gets its stdout, or stdout is inherited when OUT is NULL. *STATUS: its exit status.
 */
int vm_adapter(const char *hypervisor, const char **argv, const void *in, size_t inlen, char **out,
	       size_t *outlen, int *status, struct img_err *err);
bool vm_hypervisor_ok(const char *hypervisor);

#endif
