/* libjpeg-turbo's own interface, for images whose Huffman decoder is huffman.rs: those with one baseline scan in which
 * nothing is unusual. Whatever libjpeg complains about, in words of warning too, is given up; turbo.rs judges it then. */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

/* What libjpeg's jpegint.h, which is not installed, says of an entropy decoder, since its version 6. */
struct jpeg_entropy_decoder {
    void (*start_pass)(j_decompress_ptr);
    boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
    boolean insufficient_data;
};

/* As baseline.rs has them. */
struct header {
    uint32_t width, height;
    /* Samples of the image that an MCU is made of. */
    uint32_t unit_width, unit_height;
};

struct region {
    uint32_t left, top, width, height;
};

struct part {
    const JHUFF_TBL *dc, *ac;
    uint32_t component, all;
};

struct scan {
    /* Where its bytes begin in those of the image. */
    size_t begin;
    uint32_t blocks;
    struct part parts[D_MAX_BLOCKS_IN_MCU];
};

/* Decodes the next MCU into these blocks, one after the other and all zeros, or passes over it; 0 where it is damaged. */
typedef int (*decode_mcu)(void *scan, int16_t *blocks);

struct relabel_jpeg {
    struct jpeg_decompress_struct image;
    struct jpeg_error_mgr errors;
    jmp_buf given_up;
    size_t length;
    decode_mcu decode;
    void *scan;
    /* The next MCU's column, and the columns of which samples are made. */
    JDIMENSION column, first_column, end_column;
};

static void give_up(j_common_ptr image) {
    longjmp(((struct relabel_jpeg *)image->client_data)->given_up, 1);
}

static void complain(j_common_ptr image, int level) {
    if (level < 0) give_up(image);
}

static boolean decode(j_decompress_ptr image, JBLOCKROW *blocks) {
    struct relabel_jpeg *self = image->client_data;
    JDIMENSION column = self->column;
    self->column = column + 1 == image->MCUs_per_row ? 0 : column + 1;
    int wanted = blocks && column >= self->first_column && column < self->end_column;
    /* An MCU's blocks lie one after the other, as libjpeg's own decoder of coefficients relies on. */
    if (!self->decode(self->scan, wanted ? blocks[0][0] : NULL)) give_up((j_common_ptr)image);
    return TRUE;
}

struct relabel_jpeg *relabel_jpeg_new(void) {
    struct relabel_jpeg *self = calloc(1, sizeof *self);
    if (!self) return NULL;
    self->image.err = jpeg_std_error(&self->errors);
    self->errors.error_exit = give_up;
    self->errors.emit_message = complain;
    self->image.client_data = self;
    return self;
}

void relabel_jpeg_free(struct relabel_jpeg *self) {
    jpeg_destroy_decompress(&self->image);
    free(self);
}

static int is_usual(const struct jpeg_decompress_struct *image) {
    if (image->data_precision != 8 || image->progressive_mode || image->arith_code || image->restart_interval ||
        image->comps_in_scan != image->num_components)
        return 0;
    if (image->num_components == 1) return image->jpeg_color_space == JCS_GRAYSCALE;
    if (image->num_components != 3 || image->jpeg_color_space != JCS_YCbCr) return 0;
    const jpeg_component_info *parts = image->comp_info;
    int wide = parts[0].h_samp_factor, high = parts[0].v_samp_factor;
    for (int i = 1; i < 3; i++)
        if (parts[i].h_samp_factor != 1 || parts[i].v_samp_factor != 1) return 0;
    return (wide <= 2 && high <= 2) || (wide == 4 && high == 1) || (wide == 1 && high == 4);
}

/* Reads the header of an image, which has to stay where it is until `relabel_jpeg_read` is done with it. Returns 0 for
 * one that is not for this. */
int relabel_jpeg_open(struct relabel_jpeg *self, const uint8_t *bytes, size_t length, struct header *header) {
    struct jpeg_decompress_struct *image = &self->image;
    if (setjmp(self->given_up)) return 0;
    /* Anew, for libjpeg takes tables that an image lacks from the one before. */
    jpeg_destroy_decompress(image);
    jpeg_create_decompress(image);
    jpeg_mem_src(image, bytes, length);
    jpeg_read_header(image, TRUE);
    if (!is_usual(image)) return 0;
    self->length = length;
    int grey = image->num_components == 1;
    header->width = image->image_width;
    header->height = image->image_height;
    header->unit_width = DCTSIZE * (grey ? 1 : image->max_h_samp_factor);
    header->unit_height = DCTSIZE * (grey ? 1 : image->max_v_samp_factor);
    return 1;
}

/* Begins to decode the image that was opened, at 1 / `shrink` of its size, and says how its scan is coded. `region` is
 * what will be read of it, from a whole MCU on. */
int relabel_jpeg_start(struct relabel_jpeg *self, uint32_t shrink, const struct region *region, struct scan *scan) {
    struct jpeg_decompress_struct *image = &self->image;
    if (setjmp(self->given_up)) return 0;
    image->out_color_space = JCS_EXT_RGB;
    image->scale_num = 1;
    image->scale_denom = shrink;
    image->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(image);
    scan->begin = self->length - image->src->bytes_in_buffer;
    scan->blocks = image->blocks_in_MCU;
    for (int i = 0; i < image->blocks_in_MCU; i++) {
        int component = image->MCU_membership[i];
        const jpeg_component_info *of = image->cur_comp_info[component];
        scan->parts[i] = (struct part){
            .dc = image->dc_huff_tbl_ptrs[of->dc_tbl_no],
            .ac = image->ac_huff_tbl_ptrs[of->ac_tbl_no],
            .component = component,
            .all = of->DCT_scaled_size > 1,
        };
    }
    JDIMENSION left = region->left, width = region->width;
    JDIMENSION side = image->min_DCT_scaled_size * (image->num_components == 1 ? 1 : image->max_h_samp_factor);
    jpeg_crop_scanline(image, &left, &width);
    self->column = 0;
    self->first_column = left / side;
    self->end_column = (left + width + side - 1) / side;
    return left == region->left && width == region->width && region->height > 0 &&
           region->top < image->output_height && region->height <= image->output_height - region->top;
}

/* Reads the region that was begun, with `decode` and `scan` for its coefficients, into rows of `3 * width` bytes. */
int relabel_jpeg_read(struct relabel_jpeg *self, const struct region *region, decode_mcu decode_next, void *scan,
                      uint8_t *pixels) {
    struct jpeg_decompress_struct *image = &self->image;
    if (setjmp(self->given_up)) return 0;
    self->decode = decode_next;
    self->scan = scan;
    image->entropy->decode_mcu = decode;
    if (region->top && jpeg_skip_scanlines(image, region->top) != region->top) return 0;
    size_t pitch = (size_t)region->width * 3;
    while (image->output_scanline < region->top + region->height) {
        /* As many as libjpeg makes at once. */
        JSAMPROW rows[16];
        JDIMENSION first = image->output_scanline - region->top, count = region->height - first;
        if (count > 16) count = 16;
        for (JDIMENSION i = 0; i < count; i++) rows[i] = pixels + (first + i) * pitch;
        if (!jpeg_read_scanlines(image, rows, count)) return 0;
    }
    return 1;
}
