/* libjpeg-turbo's own interface, for images whose Huffman decoder is huffman.rs: those with one baseline scan in which
 * nothing is unusual. Whatever libjpeg complains about, in words of warning too, is given up; turbo.rs judges it then. */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

/* What libjpeg's jpegint.h, which is not installed, says of these two, since its version 6. */
struct jpeg_d_coef_controller {
    void (*start_input_pass)(j_decompress_ptr);
    int (*consume_data)(j_decompress_ptr);
    void (*start_output_pass)(j_decompress_ptr);
    /* Samples of a row of MCUs, each component's in its own rows. */
    int (*decompress_data)(j_decompress_ptr, JSAMPIMAGE);
};

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
    uint32_t components;
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

/* Samples of a component in a region: so many that count, of which rows lie `pitch` apart, `rows` of them; and how many
 * there are of an MCU, beside the pixels of one. */
struct plane {
    uint32_t width, height, pitch, rows;
    uint32_t mcu_width, mcu_height, mcu_pixels_wide, mcu_pixels_high;
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
    header->components = image->num_components;
    return 1;
}

static uint32_t share(uint64_t length, uint32_t samples, uint32_t pixels) {
    return (length * samples + pixels - 1) / pixels;
}

/* 0 where the region does not begin at a whole row of MCUs, from which alone the samples can be had. */
static int lay_out(struct relabel_jpeg *self, const struct region *region, struct plane planes[3]) {
    const struct jpeg_decompress_struct *image = &self->image;
    uint32_t wide = image->min_DCT_scaled_size * image->max_h_samp_factor;
    uint32_t high = image->min_DCT_scaled_size * image->max_v_samp_factor;
    for (int i = 0; i < 3; i++) {
        const jpeg_component_info *of = &image->comp_info[i];
        struct plane *plane = &planes[i];
        plane->mcu_width = of->h_samp_factor * of->DCT_scaled_size;
        plane->mcu_height = of->v_samp_factor * of->DCT_scaled_size;
        plane->mcu_pixels_wide = wide;
        plane->mcu_pixels_high = high;
        plane->width = share(region->width, plane->mcu_width, wide);
        plane->height = share(region->height, plane->mcu_height, high);
        plane->pitch = (self->end_column - self->first_column) * plane->mcu_width;
        plane->rows = share(region->height, 1, high) * plane->mcu_height;
    }
    return region->top % high == 0;
}

/* Begins to decode the image that was opened, at 1 / `shrink` of its size, and says how its scan is coded. `region` is
 * what will be read of it, from a whole MCU on: pixels, or, with `planes`, which has three, the samples of its three
 * components, and how these will lie. */
int relabel_jpeg_start(struct relabel_jpeg *self, uint32_t shrink, const struct region *region, struct scan *scan,
                       struct plane *planes) {
    struct jpeg_decompress_struct *image = &self->image;
    if (setjmp(self->given_up)) return 0;
    image->out_color_space = planes ? JCS_YCbCr : JCS_EXT_RGB;
    /* So that libjpeg keeps no rows back for it. */
    image->do_fancy_upsampling = !planes;
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
    if (planes && !lay_out(self, region, planes)) return 0;
    return left == region->left && width == region->width && region->height > 0 &&
           region->top < image->output_height && region->height <= image->output_height - region->top;
}

/* Goes on to the region that was begun, with `decode_next` and `scan` for coefficients. */
static int reach(struct relabel_jpeg *self, const struct region *region, decode_mcu decode_next, void *scan) {
    struct jpeg_decompress_struct *image = &self->image;
    self->decode = decode_next;
    self->scan = scan;
    image->entropy->decode_mcu = decode;
    return region->top == 0 || jpeg_skip_scanlines(image, region->top) == region->top;
}

/* Reads the region that was begun into rows of `3 * width` bytes. */
int relabel_jpeg_read(struct relabel_jpeg *self, const struct region *region, decode_mcu decode_next, void *scan,
                      uint8_t *pixels) {
    struct jpeg_decompress_struct *image = &self->image;
    if (setjmp(self->given_up)) return 0;
    if (!reach(self, region, decode_next, scan)) return 0;
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

/* Reads the samples of the region that was begun, as `planes` has them, from each of `samples` on. */
int relabel_jpeg_read_planes(struct relabel_jpeg *self, const struct region *region, const struct plane planes[3],
                             decode_mcu decode_next, void *scan, uint8_t *const samples[3]) {
    struct jpeg_decompress_struct *image = &self->image;
    if (setjmp(self->given_up)) return 0;
    if (!reach(self, region, decode_next, scan)) return 0;
    for (uint32_t mcu = 0; mcu * planes[0].mcu_height < planes[0].rows; mcu++) {
        JSAMPROW rows[3][MAX_SAMP_FACTOR * DCTSIZE];
        JSAMPARRAY components[3] = {rows[0], rows[1], rows[2]};
        for (int i = 0; i < 3; i++)
            for (size_t y = 0; y < planes[i].mcu_height; y++)
                rows[i][y] = samples[i] + (mcu * planes[i].mcu_height + y) * planes[i].pitch;
        if (!image->coef->decompress_data(image, components)) return 0;
    }
    return 1;
}
